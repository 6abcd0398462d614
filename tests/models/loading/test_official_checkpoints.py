"""Every program that loads a classifier takes the authors' checkpoint files unchanged."""

import argparse

import mmpretrain
import pytest
import torch
from helpers.config_options import loader_options, read_config
from helpers.networks import randomize, relative_error
from helpers.programs import ROOT, fail
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmvanilla import UsageError, merge_deep_convs, switch_to_deploy
from mmvanilla.checkpoint import load_checkpoint
from mmvanilla.cli.running import build_runner, drop_pretrained
from mmvanilla.models.folding.foldable import named_foldables

CONFIG = 'configs/imagenet/vanillanet-6_8xb128_in1k.py'
CONVERTER = 'tools/model_converters/official_to_mmvanilla.py'


@pytest.fixture(scope='module')
def fixture():
    return torch.load(ROOT / 'tests/data/vanillanet_6_w8_n3.pt', weights_only=True)


@pytest.fixture(scope='module')
def official(fixture, tmp_path_factory):
    """A file as the authors save it; ``model`` and ``model_ema`` hold different weights."""
    path = tmp_path_factory.mktemp('official') / 'vanillanet_6.pth'
    content = dict(
        model={
            k: v * 0.5 if v.is_floating_point() else v for k, v in fixture['state_dict'].items()
        },
        model_ema=fixture['state_dict'],
        args=argparse.Namespace(model='vanillanet_6', lr=4.8e-3),
        epoch=299,
    )
    torch.save(content, path)
    return path


@pytest.fixture
def options(imagenet, fixture):
    classes = fixture['num_classes']
    options = ['model.backbone.widen_factor=0.015625', 'model.head.in_channels=64']
    options += [f'model.head.num_classes={classes}', f'data_preprocessor.num_classes={classes}']
    options.append(f'test_evaluator.1.labels={imagenet}/real.json')
    data = (f'dataset.data_root={imagenet}', 'dataset.metainfo.classes=a,b')
    return options + loader_options('batch_size=4', *data)


def make_cfg(options, **kwargs):
    return read_config(ROOT / CONFIG, options, **kwargs)


def evaluate(run, checkpoint, options, folder, *args):
    out = folder / 'out.pkl'
    args = ['--work-dir', folder, '--out', out, *args, '--cfg-options', *options]
    run('tools/test.py', CONFIG, checkpoint, *args)
    (metrics,) = (load(path) for path in folder.glob('*/*.json'))
    assert {'accuracy/top1', 'accuracy/top5', 'real/top1'} <= metrics.keys()
    return metrics, torch.stack([sample['pred_score'] for sample in load(out)])


def test_evaluated_as_they_are_and_converted(official, options, run_tool, tmp_path):
    """The accuracy is the same to the last digit, and the scores agree."""
    found = {}
    for name, args in (('train', []), ('deploy', ['--deploy'])):
        run_tool(CONVERTER, official, tmp_path / f'{name}.pth', *args)
        found[name] = evaluate(run_tool, tmp_path / f'{name}.pth', options, tmp_path / name)
    found['direct'] = evaluate(run_tool, official, options, tmp_path / 'direct')
    found['direct, fused'] = evaluate(run_tool, official, options, tmp_path / 'fused', '--deploy')
    metrics, scores = found['direct']
    for name, (others, other_scores) in found.items():
        for key in ('accuracy/top1', 'accuracy/top5', 'real/top1'):
            assert others[key] == metrics[key], (name, key)
        torch.testing.assert_close(other_scores, scores, rtol=1e-4, atol=1e-6)
    assert torch.equal(found['train'][1], scores)


def test_evaluated_without_real_labels(official, options, run_tool, tmp_path):
    options = [*options, f'test_evaluator.1.labels={tmp_path}/none.json']
    args = ['--work-dir', tmp_path / 'run', '--cfg-options', *options]
    run_tool('tools/test.py', CONFIG, official, *args)
    (metrics,) = (load(path) for path in (tmp_path / 'run').glob('*/*.json'))
    assert 'accuracy/top1' in metrics and 'real/top1' not in metrics
    (log,) = (path.read_text() for path in (tmp_path / 'run').glob('*/*.log'))
    assert f'left out: {tmp_path}/none.json does not exist; get real.json from https://' in log


@pytest.mark.parametrize(
    ('args', 'source'), [([], 'model_ema'), (['--ema'], 'model_ema'), (['--no-ema'], 'model')]
)
def test_converter_picks_the_weights(args, source, official, run_tool, tmp_path):
    run_tool(CONVERTER, official, tmp_path / 'a.pth', *args)
    converted = torch.load(tmp_path / 'a.pth', weights_only=True)
    expected = load_checkpoint(official)[source]['stem1.0.weight']
    assert torch.equal(converted['state_dict']['backbone.stem.conv.conv1.weight'], expected)
    assert converted['meta']['mmvanilla_version']


@pytest.mark.parametrize('args', [[], ['--deploy']])
def test_converter_takes_the_deploy_form(args, fixture, run_tool, tmp_path):
    torch.save(dict(model=fixture['deploy_state_dict']), tmp_path / 'deploy.pth')
    run_tool(CONVERTER, tmp_path / 'deploy.pth', tmp_path / 'a.pth', *args)
    weights = torch.load(tmp_path / 'a.pth', weights_only=True)['state_dict']
    given = fixture['deploy_state_dict']['stem.0.weight']
    assert torch.equal(weights['backbone.stem.conv.conv.weight'], given)


def test_converter_errors(fixture, tmp_path, monkeypatch):
    torch.save(dict(model=fixture['state_dict']), tmp_path / 'plain.pth')
    torch.save({'layer1.weight': torch.ones(1)}, tmp_path / 'other.pth')
    dst = tmp_path / 'dst.pth'
    tool = 'model_converters/official_to_mmvanilla'
    message = fail(tool, tmp_path / 'plain.pth', dst, '--ema', monkeypatch=monkeypatch)
    assert "plain.pth has no 'model_ema': leave out --ema" in message
    message = fail(tool, tmp_path / 'other.pth', dst, monkeypatch=monkeypatch)
    assert "other.pth is not one of the authors' VanillaNet" in message
    detector = {f'backbone.{key}': value for key, value in fixture['state_dict'].items()}
    torch.save(dict(state_dict=detector), tmp_path / 'detector.pth')
    message = fail(tool, tmp_path / 'detector.pth', dst, monkeypatch=monkeypatch)
    assert 'detector.pth is of a detector: tools/test.py and load_from take it as it is' in message
    for layer, args in (('cls1.2.', []), ('cls1.2.', ['--deploy']), ('stages.1.act.bn.', [])):
        weights = {k: v for k, v in fixture['state_dict'].items() if not k.startswith(layer)}
        torch.save(dict(model=weights), tmp_path / 'cut.pth')
        message = fail(tool, tmp_path / 'cut.pth', dst, *args, monkeypatch=monkeypatch)
        assert 'cut.pth does not fit Classifier: missing: ' in message
    for where in (tmp_path, tmp_path / 'plain.pth'):
        message = fail(tool, tmp_path / 'plain.pth', where, monkeypatch=monkeypatch)
        assert f'{where} would be overwritten: name a new file.' in message
    message = fail(tool, tmp_path / 'none.pth', dst, monkeypatch=monkeypatch)
    assert 'none.pth does not exist' in message
    assert not dst.exists()


def test_another_series_number_is_one_sentence(official, options, tmp_path, monkeypatch):
    args = ['--work-dir', tmp_path, '--cfg-options', *options, 'model.backbone.act_num=4']
    message = fail('test', ROOT / CONFIG, official, *args, monkeypatch=monkeypatch)
    assert 'its series number is 3 (7x7 kernels), but the network has act_num=4' in message
    assert 'build it with act_num=3' in message


@pytest.mark.parametrize('form', ['merged', 'deploy'])
def test_get_model_in_another_form(form, official, fixture, options):
    cfg = make_cfg(options, **{f'model.{part}.{form}': True for part in ('backbone', 'head')})
    model = mmpretrain.get_model(cfg, pretrained=str(official)).eval()
    assert {layer.form for _, layer in named_foldables(model.backbone)} == {form}
    with torch.no_grad():
        assert relative_error(model(fixture['input']), fixture['logits']['1.0']) < 1e-5


def test_get_model_and_inferencer(official, fixture, options):
    cfg = make_cfg(options)
    model = mmpretrain.get_model(cfg, pretrained=str(official))
    with torch.no_grad():
        assert relative_error(model(fixture['input']), fixture['logits']['1.0']) < 1e-5
        fused = switch_to_deploy(model)
        assert relative_error(fused(fixture['input']), fixture['deploy_logits']) < 1e-5


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'model.backbone.act_num': 4}, r'series number is 3 \(7x7 kernels\)'),
        ({'model.backbone.arch': '7'}, 'missing: blocks.4'),
        ({'model.backbone.widen_factor': 1 / 32}, 'of another shape'),
    ],
)
def test_classifier_refuses_what_does_not_fit(change, message, official, options):
    """mmengine alone would skip the weights and only log it."""
    with pytest.raises(UsageError, match=f'does not fit the backbone: .*{message}'):
        mmpretrain.get_model(make_cfg(options, **change), pretrained=str(official))


def test_another_number_of_classes_is_fine_tuning(official, options, fixture):
    cfg = make_cfg(options, **{'model.head.num_classes': 3})
    model = mmpretrain.get_model(cfg, pretrained=str(official))
    weight = model.backbone.stem.conv.conv1.weight
    assert torch.equal(weight, fixture['state_dict']['stem1.0.weight'])
    assert tuple(model(fixture['input']).shape)[1] == 3


@pytest.mark.parametrize('form', ['deep', 'merged', 'deploy'])
@pytest.mark.parametrize('change', [{}, {'model.backbone.deploy': True}, {'model.head.merged': 1}])
def test_own_checkpoints_in_every_form(form, change, options, tmp_path):
    source = randomize(mmpretrain.get_model(make_cfg(options))).eval()
    fold = dict(deep=lambda model: model, merged=merge_deep_convs, deploy=switch_to_deploy)[form]
    torch.save(dict(state_dict=fold(source).state_dict()), tmp_path / 'own.pth')
    cfg = make_cfg(options, **change)
    model = mmpretrain.get_model(cfg, pretrained=str(tmp_path / 'own.pth')).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(model(images), source(images)) < 1e-5


def test_own_checkpoint_of_another_network(options, tmp_path):
    torch.save(mmpretrain.get_model(make_cfg(options)).state_dict(), tmp_path / 'own.pth')
    cfg = make_cfg(options, **{'model.backbone.arch': '7'})
    with pytest.raises(UsageError, match='checkpoint does not fit the backbone: missing: blocks.4'):
        mmpretrain.get_model(cfg, pretrained=str(tmp_path / 'own.pth'))


def load_from(path, options, work_dir, hooks, build=Runner.from_cfg, **kwargs):
    """Returns the model and its averaged copy, in their state when training begins."""
    init_default_scope('mmpretrain')
    cfg = make_cfg(options, load_from=str(path), work_dir=str(work_dir), **kwargs)
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type in hooks]
    if hooks[0] == 'EMAHook':
        cfg.custom_hooks.reverse()
    cfg.update(experiment_name=str(work_dir), log_level='ERROR')
    runner = build(cfg)
    runner.call_hook('before_run')
    runner.load_or_resume()
    (ema,) = [hook.ema_model.module for hook in runner.hooks if hasattr(hook, 'ema_model')]
    return runner.model, ema


LAMBDA_HOOK = 'mmvanilla.DeepTrainingHook'


@pytest.mark.parametrize(
    ('hooks', 'build'),
    [
        ([LAMBDA_HOOK, 'EMAHook'], Runner.from_cfg),
        (['EMAHook', LAMBDA_HOOK], Runner.from_cfg),
        (['EMAHook'], build_runner),
    ],
)
@pytest.mark.parametrize('bare', [False, True])
def test_load_from_under_ema(bare, hooks, build, official, fixture, options, tmp_path):
    if bare:
        official = tmp_path / 'bare.pth'
        torch.save(fixture['state_dict'], official)
    for model in load_from(official, options, tmp_path, hooks, build):
        for name, key in (('stem.conv.conv1', 'stem1.0'), ('blocks.3.act.norm', 'stages.3.act.bn')):
            got = model.state_dict()[f'backbone.{name}.weight']
            assert torch.equal(got, fixture['state_dict'][f'{key}.weight'])
        got = model.state_dict()['head.conv.conv2.weight']
        assert torch.equal(got, fixture['state_dict']['cls2.0.weight'])


def test_fine_tuning_from_a_run_under_ema(options, tmp_path):
    """Fine-tuning to other classes starts from the averaged weights, which the state dict holds."""
    model = mmpretrain.get_model(make_cfg(options))
    for param in model.parameters():
        torch.nn.init.normal_(param)
    averaged = {f'module.{k}': torch.zeros_like(v) for k, v in model.state_dict().items()}
    averaged['steps'] = torch.tensor(3)
    saved = dict(state_dict=model.state_dict(), ema_state_dict=averaged)
    torch.save(saved, tmp_path / 'own.pth')
    hooks = [LAMBDA_HOOK, 'EMAHook']
    change = {'model.head.num_classes': 3}
    for loaded in load_from(tmp_path / 'own.pth', options, tmp_path, hooks, **change):
        weight = loaded.backbone.stem.conv.conv1.weight
        assert torch.equal(weight, model.backbone.stem.conv.conv1.weight)
        assert loaded.head.conv.conv2.weight.shape[0] == 3


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (['data_preprocessor.num_classes=3'], 'data_preprocessor.num_classes is 3: set both'),
        (
            ['data_preprocessor.num_classes=3', 'model.head.num_classes=3'],
            'an evaluator has topk=(1, 5), but there are 3 classes',
        ),
    ],
)
def test_classes_that_do_not_go_together(change, message, options, tmp_path, monkeypatch):
    args = ['--work-dir', tmp_path, '--cfg-options', *options, *change]
    assert message in fail('train', ROOT / CONFIG, *args, monkeypatch=monkeypatch)


def test_load_from_needs_no_shallower_network(options, run_tool, tmp_path):
    """A checkpoint of the complete network replaces the weights that init_cfg names."""
    config = str(ROOT / CONFIG).replace('vanillanet-6', 'vanillanet-11')
    model = mmpretrain.get_model(make_cfg([*options, 'model.backbone.arch=11']))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'own.pth')
    change = [f'load_from={tmp_path}/own.pth', 'train_cfg.max_epochs=1']
    change += ['model.head.num_classes=2', 'data_preprocessor.num_classes=2']
    change += ['val_evaluator.topk=(1,)', 'test_evaluator.0.topk=(1,)']
    args = ['--work-dir', tmp_path / 'run', '--cfg-options', *options, *change]
    run_tool('tools/train.py', config, *args)
    assert (tmp_path / 'run/epoch_1.pth').exists()


def test_resumed_run_needs_no_shallower_network():
    cfg = Config.fromfile(ROOT / 'configs/imagenet/vanillanet-11_8xb128_in1k.py')
    drop_pretrained(cfg)
    assert cfg.model.backbone.init_cfg is None
