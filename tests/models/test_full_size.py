"""The main config at its real size: minutes and gigabytes, so only `make test-slow` runs it."""

import pytest
import torch
from helpers.networks import randomize, relative_error
from helpers.pairs import zip_equal
from helpers.programs import ROOT
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from mmvanilla import switch_to_deploy

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def detector():
    init_default_scope('mmdet')
    cfg = Config.fromfile(ROOT / 'configs/retinanet_vanillanet13.py')
    cfg.model.backbone.update(init_cfg=None, norm_cfg=dict(type='BN'))
    return randomize(MODELS.build(cfg.model)), cfg


def test_fused_detector(detector):
    model, _ = detector
    fused = switch_to_deploy(model)
    assert round(sum(p.numel() for p in fused.parameters()) / 1e6, 2) == 75.38
    x = torch.randn(1, 3, 256, 320)
    with torch.no_grad():
        for got, expected in zip_equal(fused.backbone(x), model.eval().backbone(x)):
            assert relative_error(got, expected) < 1e-4


def test_training_iteration_at_800x1280(detector):
    model, cfg = detector
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    data = demo_mm_inputs(1, [[3, 800, 1280]], num_classes=80)
    before = model.backbone.stem.conv.conv1.weight.clone()
    losses = model.train().train_step(data, optim_wrapper)
    assert losses['loss'].isfinite()
    assert not torch.equal(model.backbone.stem.conv.conv1.weight, before)
