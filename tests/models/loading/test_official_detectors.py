"""The authors' COCO detectors load unchanged: mmdet 2.x files with the authors' key names."""

import pytest
import torch
from helpers.config_options import read_config
from helpers.narrow_detector import CONFIG, narrow_options
from helpers.networks import randomize
from helpers.pairs import zip_equal
from helpers.programs import ROOT
from mmdet.registry import MODELS
from mmengine.fileio import load
from mmengine.registry import init_default_scope

from mmvanilla import convert_official_state_dict
from mmvanilla.checkpoint import load_checkpoint
from mmvanilla.models.loading.official import is_official_state_dict


@pytest.fixture(scope='module')
def fixture():
    """VanillaNet-13 with series number 4, as in the authors' detectors, at 1/64 of its width."""
    return torch.load(ROOT / 'tests/data/vanillanet_13_w8_n4.pt', weights_only=True)


@pytest.fixture(scope='module')
def detector(digits):
    """The main config at 1/64 of its width, with random weights in neck and head."""
    init_default_scope('mmdet')
    cfg = read_config(ROOT / CONFIG, narrow_options(digits)[1:])
    return randomize(MODELS.build(cfg.model))


@pytest.fixture(scope='module')
def official(fixture, detector, tmp_path_factory):
    """A file as mmdet 2.x saves it."""
    backbone = {k: v for k, v in fixture['state_dict'].items() if not k.startswith('cls')}
    rest = {k: v for k, v in detector.state_dict().items() if not k.startswith('backbone.')}
    path = tmp_path_factory.mktemp('official') / 'retinanet_vanillanet_13.pth'
    content = dict(
        meta=dict(
            mmdet_version='2.28.2+f6d5bd0',
            config="model = dict(type='RetinaNet')",
            CLASSES=('person', 'bicycle'),
            env_info='sys.platform: linux',
            seed=0,
            epoch=12,
            iter=43980,
            hook_msgs={},
        ),
        state_dict={**{f'backbone.{k}': v for k, v in backbone.items()}, **rest},
        optimizer=dict(state={}, param_groups=[dict(lr=8e-5, params=[0])]),
    )
    torch.save(content, path)
    return path


@pytest.fixture(scope='module')
def expected(official, detector, fixture):
    """The detector with the same weights under our names."""
    weights = convert_official_state_dict(load_checkpoint(official)['state_dict'])
    detector.load_state_dict(weights, strict=True)
    return detector.eval()


def test_weights_arrive_where_they_belong(expected, fixture):
    features = expected.backbone(fixture['input'])
    for feature, block in zip_equal(features, ('1', '8', '10')):
        torch.testing.assert_close(feature, fixture['block_features'][block], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('args', [[], ['--deploy']], ids=['train form', 'fused'])
def test_evaluated_as_they_are(args, official, expected, digits, run_tool, tmp_path):
    """tools/test.py predicts the same from the file as from its weights under our names."""
    torch.save(dict(state_dict=expected.state_dict()), tmp_path / 'ours.pth')
    found = []
    for name, path in (('theirs', official), ('ours', tmp_path / 'ours.pth')):
        out = ['--work-dir', tmp_path / name, '--out', tmp_path / f'{name}.pkl', *args]
        run_tool('tools/test.py', CONFIG, path, *out, *narrow_options(digits))
        (metrics,) = (load(file) for file in (tmp_path / name).glob('*/*.json'))
        assert 'coco/bbox_mAP' in metrics
        found.append([sample['pred_instances'] for sample in load(tmp_path / f'{name}.pkl')])
    assert sum(len(instances['scores']) for instances in found[0]) > 0
    for theirs, ours in zip_equal(*found):
        for key in ('bboxes', 'scores', 'labels'):
            assert torch.equal(theirs[key], ours[key]), key


@pytest.mark.parametrize(
    'key', ['stem.0.conv.weight', 'stem.0.weight', 'stem.1.running_mean', 'stages.0.0.weight']
)
@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_other_networks_are_left_alone(prefix, key):
    assert not is_official_state_dict({f'{prefix}{key}': torch.ones(1)})


def test_loaded_by_anyone(official, expected):
    """The backbone renames the authors' keys itself, so torch's own loading works too."""
    fresh = type(expected.backbone)(
        arch='13', act_num=4, widen_factor=1 / 64, out_indices=(1, 2, 3)
    )
    given = load_checkpoint(official)['state_dict']
    given = {k[len('backbone.') :]: v for k, v in given.items() if k.startswith('backbone.')}
    fresh.load_state_dict(given, strict=True)
    for name, value in expected.backbone.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name
