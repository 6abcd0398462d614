"""tools/test.py --tta: the mean over an image and its mirror image, of the checkpoint's weights."""

import copy

import pytest
import torch
from helpers.config_options import loader_options, read_config
from helpers.narrow_detector import CONFIG, narrow_options
from helpers.networks import randomize
from helpers.programs import ROOT
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import init_default_scope

from mmvanilla import UsageError
from mmvanilla.cli.augmented_test import augment_test
from mmvanilla.cli.running import build_model

CLASSIFIER = 'configs/imagenet/vanillanet-5_8xb128_in1k.py'


def test_classifier(imagenet, run_tool, tmp_path):
    """With an EMA hook, which swaps weights, and other averaged weights in the file."""
    options = [
        'model.backbone.widen_factor=0.015625',
        'model.head.in_channels=64',
        f'test_dataloader.dataset.data_root={imagenet}',
        'test_dataloader.dataset.metainfo.classes=a,b',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
    ]
    cfg = read_config(ROOT / CLASSIFIER, options)
    assert any('EMAHook' in hook.type for hook in cfg.custom_hooks)
    model = randomize(build_model(copy.deepcopy(cfg))).eval()
    others = {f'module.{k}': v * 0.5 for k, v in model.state_dict().items()}
    content = dict(state_dict=model.state_dict(), ema_state_dict=others)
    torch.save(content, tmp_path / 'a.pth')
    found = {}
    for name, more in (('once', []), ('twice', ['--tta']), ('fused', ['--tta', '--deploy'])):
        out = tmp_path / f'{name}.pkl'
        run_tool(
            *('tools/test.py', CLASSIFIER, tmp_path / 'a.pth', '--work-dir', tmp_path),
            *('--out', out, *more, '--cfg-options', *options),
        )
        found[name] = [(each['img_path'], each['pred_score']) for each in load(out)]
    assert {path.name for path in tmp_path.glob('*.py')} == {
        'vanillanet-5_8xb128_in1k.py',  # of training and testing, which TTA does not overwrite
        'vanillanet-5_8xb128_in1k_tta.py',
    }
    for i, (path, scores) in enumerate(found['twice']):
        expected = expected_scores(model, cfg, path)
        torch.testing.assert_close(scores, expected.mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found['once'][i][1], expected[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found['fused'][i][1], expected.mean(0), rtol=1e-3, atol=1e-5)


@torch.no_grad()
def expected_scores(model, cfg, path):
    """The scores of an image and of its mirror image, (2, classes)."""
    from mmengine.dataset import Compose

    init_default_scope('mmpretrain')
    step = Compose(cfg.test_dataloader.dataset.pipeline)(dict(img_path=path, gt_label=0))
    images = torch.stack([step['inputs'], step['inputs'].flip(2)])
    data = model.data_preprocessor(dict(inputs=images))
    return model(data['inputs']).softmax(1)


def test_detector(trained, digits, run_tool, capfd, tmp_path):
    args = ('tools/test.py', CONFIG, trained / 'epoch_3.pth', '--tta', '--work-dir', tmp_path)
    run_tool(*args, '--out', tmp_path / 'found.pkl', *narrow_options(digits))
    assert 'coco/bbox_mAP:' in capfd.readouterr().out
    (once, twice) = (
        len(each['pred_instances']['scores']) for each in load(tmp_path / 'found.pkl')[:2]
    )
    assert once and twice


def test_segmentor(digits, run_tool, capfd, tmp_path):
    config = 'configs/digits/upernet_vanillanet-6_digits.py'
    options = loader_options(f'dataset.data_root={digits}/')
    model = build_model(read_config(ROOT / config, options))
    torch.save(dict(state_dict=randomize(model).state_dict()), tmp_path / 'a.pth')
    args = ('tools/test.py', config, tmp_path / 'a.pth', '--tta', '--work-dir', tmp_path)
    run_tool(*args, '--cfg-options', *options)
    assert 'mIoU:' in capfd.readouterr().out


def test_the_configs_own_augmentation():
    own = dict(
        tta_model=dict(type='mmpretrain.AverageClsScoreTTA'), tta_pipeline=[dict(type='Own')]
    )
    inner = dict(type='CustomDataset', pipeline=[dict(type='PackInputs')])
    loader = dict(dataset=dict(type='RepeatDataset', dataset=inner))
    model = dict(type='mmpretrain.ImageClassifier')
    cfg = Config(dict(model=model, test_dataloader=loader, **own))
    augment_test(cfg)
    assert cfg.test_dataloader.dataset.dataset.pipeline == own['tta_pipeline']
    assert cfg.model == dict(own['tta_model'], module=model)


def test_other_packages():
    cfg = Config(dict(model=dict(type='Own'), test_dataloader=dict(dataset=dict(pipeline=[]))))
    with pytest.raises(UsageError, match='set tta_model and tta_pipeline in the config'):
        augment_test(cfg)
