"""optimize_for_inference keeps the outputs of a backbone and a detector, compiled or not."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from helpers.networks import randomize, relative_error
from helpers.pairs import zip_equal
from helpers.programs import ROOT
from helpers.versions import needs_torch, torch_has
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import load_state_dict as mmengine_load

from mmvanilla import (
    UsageError,
    VanillaNet,
    optimize_for_inference,
    set_deep_training_lambda,
    switch_to_deploy,
)
from mmvanilla.deployment import optimized_inference

X = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def backbone():
    return randomize(VanillaNet('6', widen_factor=1 / 16, out_indices=(1, 3))).eval()


@torch.no_grad()
@pytest.mark.parametrize('compile', [False, None])
def test_backbone(backbone, compile):
    optimized = optimize_for_inference(backbone, compile=compile)
    if torch_has('2.1'):
        with torch._dynamo.config.patch(error_on_recompile=True):  # it shares no code with others
            optimized(X)
        assert (optimized._compiled_call_impl is not None) == (compile is None)
    for model in (optimized, copy.deepcopy(optimized)):
        for x in (X, X[:1, :, :32]):
            for got, expected in zip_equal(model(x), backbone(x)):
                assert relative_error(got, expected) < 1e-4
    assert backbone.stem.conv.is_deep  # a copy was optimized
    assert not any(param.requires_grad for param in optimized.parameters())


@torch.no_grad()
@pytest.mark.parametrize(
    'load',
    [
        lambda model, weights: model.load_state_dict(weights),
        lambda model, weights: model.load_state_dict(weights, strict=False),
        lambda model, weights: model.stem.conv.conv.load_state_dict(
            {k[15:]: v for k, v in weights.items() if k.startswith('stem.conv.conv.')}
        ),
        mmengine_load,
    ],
)
def test_other_weights_are_refused(load, backbone):
    """They would give neither the old nor the new results, because weights are constants."""
    other = switch_to_deploy(randomize(copy.deepcopy(backbone), seed=1)).state_dict()
    optimized = optimize_for_inference(backbone, compile=False)
    expected = optimized(X)
    for model in (optimized, copy.deepcopy(optimized)):
        with pytest.raises(UsageError, match='call optimize_for_inference again'):
            load(model, other)
        for got, one in zip_equal(model(X), expected):
            assert torch.equal(got, one)
    backbone.load_state_dict(other)  # the network itself still takes them


@torch.no_grad()
def test_bfloat16(backbone):
    optimized = optimize_for_inference(backbone, dtype=torch.bfloat16, compile=False)
    for got, expected in zip_equal(optimized(X), backbone(X)):
        assert got.dtype == torch.float32
        assert 1e-5 < relative_error(got, expected) < 0.1


@needs_torch('2.1', 'nn.Module.compile')
@torch.no_grad()
@pytest.mark.slow
def test_detector():
    cfg = Config.fromfile(ROOT / 'configs/digits/retinanet_vanillanet-6_digits.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(cfg.model)
    randomize(detector.backbone)
    detector.eval()
    optimized = optimize_for_inference(detector)
    for part in (optimized.backbone, optimized.neck, optimized.bbox_head):
        assert part._compiled_call_impl is not None
    for got, expected in zip(optimized(X, mode='tensor'), detector(X, mode='tensor')):
        for level in zip_equal(got, expected):
            assert relative_error(*level) < 1e-4


@needs_torch('2.1', 'nn.Module.compile')
def test_no_compiler(backbone, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError('No working C++ compiler found')

    said = []
    monkeypatch.setattr(torch, 'compile', lambda *args, **kwargs: fail)
    monkeypatch.setattr(
        optimized_inference, 'print_log', lambda message, logger: said.append(message)
    )
    optimized_inference.compiler_works.cache_clear()
    optimized = optimize_for_inference(backbone)
    optimized_inference.compiler_works.cache_clear()
    assert optimized._compiled_call_impl is None
    assert 'run without it: No working C++ compiler found' in said[0]
    assert said[1] == 'Optimized for cpu: fused, channels_last, float32.'


def test_below_one_is_refused(backbone):
    set_deep_training_lambda(backbone, 0.5)
    with pytest.raises(UsageError, match='λ = 0.5'):
        optimize_for_inference(backbone)


@torch.no_grad()
@pytest.mark.parametrize(
    ('can', 'tolerance', 'expected'),
    [(True, 0.05, torch.bfloat16), (False, 0.05, torch.float32), (True, 1e-4, torch.float32)],
)
def test_auto(can, tolerance, expected, backbone, monkeypatch):
    """bfloat16 where the processor has it, unless it changes the outputs too much."""
    monkeypatch.setattr(optimized_inference, 'has_bfloat16', lambda device: can)
    monkeypatch.setattr(optimized_inference, 'TOLERANCE', tolerance)
    optimized = optimize_for_inference(backbone, dtype='auto', compile=False)
    assert next(optimized.parameters()).dtype == expected


@needs_torch('2.0', 'keyword arguments in hooks')
@torch.no_grad()
def test_bfloat16_pickles_and_takes_keyword_arguments(backbone):
    optimized = optimize_for_inference(backbone, dtype=torch.bfloat16, compile=False)
    expected = optimized(X)
    for model in (optimized, pickle.loads(pickle.dumps(optimized))):
        for got, one in zip_equal(model(x=X), expected):
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, one, rtol=0, atol=0)


@needs_torch('2.1', 'torch.compile in place')
def test_threads_do_not_disturb_the_setting():
    from torch._inductor import config

    barrier = Barrier(4)

    def enter(_):
        for _ in range(50):
            barrier.wait()
            with optimized_inference._constant_weights():
                assert config.freezing

    before = config.freezing
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(enter, range(4)))
    assert config.freezing == before
