"""The packages' own tools and inferencers, with the training config and no options of ours."""

import copy
from pathlib import Path

import mmdet
import mmpretrain
import mmseg
import numpy as np
import pytest
import torch
from helpers.config_options import loader_options, read_config
from helpers.narrow_detector import CONFIG, narrow_options
from helpers.networks import FORMS, randomize, relative_error
from helpers.programs import ROOT, forget_runs
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain import ImageClassificationInferencer
from mmseg.apis import inference_model, init_model

from mmvanilla import UsageError
from mmvanilla.checkpoint import load_checkpoint
from mmvanilla.cli.running import build_model
from mmvanilla.models.folding.network import deep_convs
from mmvanilla.models.loading.weights import load_weights, read_state_dict

FORM = pytest.mark.parametrize(
    'form', [pytest.param('deep', marks=pytest.mark.slow), 'merged', 'deploy']
)
TOOLS = {
    package.__name__: Path(package.__file__).parent / '.mim/tools'
    for package in (mmdet, mmpretrain, mmseg)
}


class Project:
    """A user's training config, and a checkpoint in every form."""

    def __init__(self, cfg, folder, checkpoint=None):
        self.folder = folder
        self.config = str(folder / 'config.py')
        cfg.dump(self.config)
        self.model = build_model(copy.deepcopy(cfg))
        if checkpoint is None:
            randomize(self.model)
            content = dict(meta=dict(cfg=cfg.pretty_text, dataset_meta=dict(classes=list('abcde'))))
        else:
            load_weights(self.model, read_state_dict(checkpoint), checkpoint)
            content = load_checkpoint(checkpoint)
        self.model.eval()
        for form, fold in FORMS.items():
            weights = fold(self.model).state_dict()
            torch.save({**content, 'state_dict': weights}, self.checkpoint(form))

    def checkpoint(self, form):
        return str(self.folder / f'{form}.pth')

    def test(self, tool, form, run_tool, *args):
        """Runs a test tool; returns its metrics."""
        work_dir = self.folder / f'{tool.parts[-4]}-{form}'
        run_tool(tool, self.config, self.checkpoint(form), '--work-dir', work_dir, *args)
        (result,) = work_dir.glob('*/*.json')
        return {key: value for key, value in load(result).items() if 'time' not in key}

    def check_tests_alike(self, package, form, run_tool):
        expected = self.test(ROOT / 'tools/test.py', form, run_tool)
        got = self.test(TOOLS[package] / 'test.py', form, run_tool)
        assert got == pytest.approx(expected, abs=1e-6) and len(got) > 0


@pytest.fixture(scope='module')
def detection(trained, digits, tmp_path_factory):
    cfg = read_config(ROOT / CONFIG, narrow_options(digits)[1:])
    return Project(cfg, tmp_path_factory.mktemp('mmdet'), trained / 'epoch_3.pth')


@pytest.fixture(scope='module')
def classification(imagenet, tmp_path_factory):
    data = (f'dataset.data_root={imagenet}', 'dataset.metainfo.classes=a,b')
    options = loader_options('batch_size=2', *data)
    changes = {
        'model.backbone.widen_factor': 1 / 64,
        'model.head.in_channels': 64,
        'model.head.num_classes': 5,  # two of them are in the data
        'data_preprocessor.num_classes': 5,
        'test_evaluator.1.labels': str(imagenet / 'real.json'),
    }
    cfg = read_config(ROOT / 'configs/imagenet/vanillanet-6_8xb128_in1k.py', options, **changes)
    return Project(cfg, tmp_path_factory.mktemp('mmpretrain'))


@pytest.fixture(scope='module')
def segmentation(digits, tmp_path_factory):
    options = loader_options(f'dataset.data_root={digits}/')
    cfg = read_config(ROOT / 'configs/digits/upernet_vanillanet-6_digits.py', options)
    return Project(cfg, tmp_path_factory.mktemp('mmseg'))


@pytest.fixture(scope='module')
def photo(digits):
    return str(min((digits / 'val2017').iterdir()))


@FORM
def test_mmdet_test(form, detection, run_tool):
    detection.check_tests_alike('mmdet', form, run_tool)


def assert_same_boxes(got, expected):
    """Asserts that there are boxes, and that scores, boxes and labels agree in the same order."""
    assert len(got['scores']) == len(expected['scores']) > 0
    for key in ('scores', 'bboxes', 'labels'):
        np.testing.assert_allclose(got[key], expected[key], rtol=1e-3, atol=1e-3, err_msg=key)


@pytest.fixture(scope='module')
def boxes(detection, photo):
    """What mmdet finds in the photo with weights that our own functions loaded."""
    model = init_detector(detection.config, detection.checkpoint('deep'), device='cpu')
    model.load_state_dict(detection.model.state_dict())
    return inference_detector(model, photo).pred_instances.to_dict()


@FORM
def test_init_detector(form, detection, photo, boxes):
    model = init_detector(detection.config, detection.checkpoint(form), device='cpu')
    assert_same_boxes(inference_detector(model, photo).pred_instances.to_dict(), boxes)


@FORM
@pytest.mark.parametrize('with_config', [True, False], ids=['config', 'config in the file'])
def test_det_inferencer(form, with_config, detection, photo, boxes):
    config = detection.config if with_config else None
    inferencer = DetInferencer(config, detection.checkpoint(form), device='cpu')
    (found,) = inferencer(photo)['predictions']
    assert_same_boxes(found, boxes)


def test_the_fused_file_of_a_run(trained, detection, photo, boxes):
    for config in (detection.config, None):
        inferencer = DetInferencer(config, str(trained / 'epoch_3_deploy.pth'), device='cpu')
        (found,) = inferencer(photo)['predictions']
        assert_same_boxes(found, boxes)


@FORM
def test_mmpretrain_test(form, classification, run_tool):
    classification.check_tests_alike('mmpretrain', form, run_tool)


@FORM
def test_get_model_and_inferencer(form, classification, photo):
    images = torch.rand(2, 3, 64, 64)
    model = mmpretrain.get_model(classification.config, classification.checkpoint(form)).eval()
    with torch.no_grad():
        assert relative_error(model(images), classification.model(images)) < 1e-5
    expected, found = (
        ImageClassificationInferencer(classification.config, classification.checkpoint(each))
        for each in ('deep', form)
    )
    scores = [each(photo)[0]['pred_scores'] for each in (expected, found)]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-5)


@FORM
def test_mmpretrains_reparameterizing_tool(form, classification, run_tool, tmp_path):
    """The tool fuses the backbone and does not change the head."""
    tool = TOOLS['mmpretrain'] / 'model_converters/reparameterize_model.py'
    path = tmp_path / 'mixed.pth'
    run_tool(tool, classification.config, classification.checkpoint(form), path)
    keys = load_checkpoint(path)['state_dict'].keys()
    assert 'backbone.stem.act.conv.bias' in keys
    model = mmpretrain.get_model(classification.config, str(path)).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(model(images), classification.model(images)) < 1e-5


@FORM
def test_mmseg_test(form, segmentation, run_tool):
    segmentation.check_tests_alike('mmseg', form, run_tool)


@FORM
def test_init_model(form, segmentation, photo):
    models = [
        init_model(segmentation.config, segmentation.checkpoint(each), device='cpu')
        for each in ('deep', form)
    ]
    models[0].load_state_dict(segmentation.model.state_dict())
    expected, found = (inference_model(model, photo).seg_logits.data for model in models)
    assert relative_error(found, expected) < 1e-4


@pytest.mark.parametrize('tool', ['ours', pytest.param('mmdet', marks=pytest.mark.slow)])
def test_fused_weights_are_not_trained(tool, detection, run_tool, tmp_path):
    path = (TOOLS[tool] if tool in TOOLS else ROOT / 'tools') / 'train.py'
    option = f'load_from={detection.checkpoint("deploy")}'
    args = (path, detection.config, '--work-dir', tmp_path, '--cfg-options', option)
    with pytest.raises((UsageError, SystemExit), match='fused weights') as error:
        run_tool(*args)
    assert str(error.value).count('\n') == 0
    assert not list(tmp_path.glob('*.pth'))
    with pytest.raises((UsageError, SystemExit), match='fused weights'):  # without our hook
        run_tool(*args, 'custom_hooks=[]')


def train(detection, folder, **changes):
    cfg = Config.fromfile(detection.config)
    cfg.merge_from_dict({'work_dir': str(folder), 'train_cfg.max_epochs': 1, **changes})
    init_default_scope('mmdet')
    forget_runs()
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


@pytest.mark.parametrize('merge', [True, False])
def test_merged_weights_are_trained_on(merge, detection, tmp_path, caplog):
    """With the config of their run, which anneals λ, weights stay merged, and the log says so."""
    runner = train(
        detection,
        tmp_path,
        load_from=detection.checkpoint('merged'),
        **{'custom_hooks.0.merge': merge},
    )
    assert not any(conv.is_deep for conv in deep_convs(runner.model))
    before = load_checkpoint(detection.checkpoint('merged'))['state_dict']
    held = {id(p) for g in runner.optim_wrapper.param_groups for p in g['params']}
    for name, parameter in runner.model.named_parameters():
        assert id(parameter) in held, name
        if name.endswith('conv.conv.weight') and 'blocks.10' not in name:
            assert not torch.equal(parameter, before[name]), name
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'The loaded weights are merged, so λ stays 1: decay_epochs=2' in log


def test_merged_weights_without_our_hook(detection, tmp_path):
    changes = dict(load_from=detection.checkpoint('merged'), custom_hooks=[])
    with pytest.raises(UsageError, match='after its optimizer was made.*merged=True'):
        train(detection, tmp_path / 'refused', **changes)
    built = {'model.backbone.merged': True}
    train(detection, tmp_path / 'built', **changes, **built)
