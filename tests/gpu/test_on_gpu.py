"""What runs differently on a GPU: layouts, precisions, recomputing, merging, graphs, SyncBN.

Run with ``CUDA_VISIBLE_DEVICES=0 python -m pytest -m gpu``; without a GPU they are left out.
"""

import copy

import pytest
import torch
from helpers.fused_activation_pass import activate, with_gradients
from helpers.networks import FORMS, randomize, relative_error
from helpers.pairs import zip_equal
from helpers.small_run import Classifier, Record, make_runner
from mmengine.hooks import Hook

from mmvanilla import (
    VanillaNet,
    merge_deep_convs,
    optimize_for_inference,
    set_deep_training_lambda,
    switch_to_deploy,
)
from mmvanilla.checkpoint import load_checkpoint
from mmvanilla.models.folding.network import deep_convs

DEVICE = 'cuda'
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU'),
]
X = torch.randn(4, 3, 96, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def no_tf32():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def make_backbone(**kwargs):
    return randomize(VanillaNet('6', widen_factor=1 / 8, out_indices=(1, 3), **kwargs))


def run(model, x):
    """Features, the gradients of the parameters, and that of the input, of a training step."""
    x = x.clone().requires_grad_()
    features = model(x)
    sum(each.square().mean() for each in features).backward()
    gradients = {name: param.grad for name, param in model.named_parameters()}
    model.zero_grad()
    return features, {**gradients, 'input': x.grad}


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_inference_is_that_of_float64(form, layout):
    backbone = make_backbone().eval()
    expected = copy.deepcopy(backbone).double()(X.double())
    model = FORMS[form](backbone).to(DEVICE, memory_format=layout)
    for got, each in zip_equal(model(X.to(DEVICE, memory_format=layout)), expected):
        assert relative_error(got.cpu(), each) < 1e-4


@pytest.mark.parametrize('value', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_training_step_is_that_of_float64(value, with_cp, layout):
    backbone = make_backbone(with_cp=with_cp)
    set_deep_training_lambda(backbone, value)
    precise = copy.deepcopy(backbone).double()
    expected = run(precise, X.double())
    model = copy.deepcopy(backbone).to(DEVICE, memory_format=layout)
    features, gradients = run(model, X.to(DEVICE, memory_format=layout))
    for got, each in zip_equal(features, expected[0]):
        assert relative_error(got.detach().cpu(), each) < 1e-4
    largest = max(each.abs().max() for each in expected[1].values())
    for name, each in expected[1].items():
        # Of a convolution before a norm, the bias has no gradient but rounding's.
        assert (gradients[name].cpu() - each).abs().max() < 1e-3 * largest, name
    for name, buffer in precise.named_buffers():
        if 'running' in name:
            assert relative_error(dict(model.named_buffers())[name].cpu(), buffer) < 1e-4, name


def test_recomputing_saves_memory():
    peaks = []
    for with_cp in (False, True):
        model, x = make_backbone(with_cp=with_cp).to(DEVICE), X.repeat(8, 1, 2, 2).to(DEVICE)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(model, x)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 0.8 * peaks[0]


def test_folding_stays_on_the_gpu():
    model = make_backbone().to(DEVICE).eval()
    for fold in (merge_deep_convs, switch_to_deploy):
        folded = fold(model)
        assert {param.device.type for param in folded.parameters()} == {DEVICE}
        on_cpu = dict(fold(copy.deepcopy(model).cpu()).named_parameters())
        for name, value in folded.named_parameters():
            assert relative_error(value.double().cpu(), on_cpu[name].double()) < 1e-6, name


class Losses(Hook):
    def __init__(self):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs['loss'].item())


AMP = [
    dict(type='OptimWrapper'),
    dict(type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16'),
    dict(type='AmpOptimWrapper', dtype='bfloat16'),
]


@pytest.mark.parametrize('wrapper', AMP, ids=['float32', 'float16', 'bfloat16'])
def test_run_with_merge(wrapper, tmp_path):
    """A run with λ = 0, 0.5, 1, merged from there, and fused at its end."""
    record, losses = Record(), Losses()
    runner = make_runner(
        tmp_path, hook=dict(merge=True), hooks=[record, losses], model=Classifier().to(DEVICE)
    )
    runner.optim_wrapper = dict(wrapper, optimizer=dict(type='AdamW', lr=0.001))
    runner.train()
    assert [next(iter(each)) for each in record.train[::2]][:3] == [0, 0.5, 1]
    assert not any(conv.is_deep for conv in deep_convs(runner.model))
    assert all(loss == loss and loss < 10 for loss in losses.losses)
    assert len(losses.losses) == 8
    fused = Classifier(deploy=True)
    fused.load_state_dict(load_checkpoint(tmp_path / 'epoch_4_deploy.pth')['state_dict'])
    model = runner.model.eval()
    with torch.no_grad():
        expected = model(X.to(DEVICE), None).cpu()
        assert relative_error(fused.eval()(X, None), expected) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize(
    ('dtype', 'tolerance'),
    [(torch.float32, 1e-4), (torch.float16, 0.02), (torch.bfloat16, 0.1), ('auto', 0.1)],
)
def test_optimized(dtype, tolerance):
    """Outputs are right at every size, and stay as they are when the network runs again."""
    backbone = make_backbone().eval()
    optimized = optimize_for_inference(backbone, DEVICE, dtype)
    kept = []
    for x in (X, X[:1, :, :64], X.flip(0)):
        got, expected = optimized(x.to(DEVICE)), backbone(x)
        kept.append((got, expected))
    for got, expected in kept:
        for one, other in zip_equal(got, expected):
            assert relative_error(one.cpu(), other) < tolerance


def test_compiled_training():
    """torch.compile gives the steps of the network itself, deep and merged."""
    backbone = make_backbone()
    for model in (backbone, merge_deep_convs(backbone)):
        expected = run(copy.deepcopy(model).to(DEVICE), X.to(DEVICE))
        model = model.to(DEVICE)
        features, gradients = run(torch.compile(model), X.to(DEVICE))
        for got, each in zip_equal(features, expected[0]):
            assert relative_error(got, each) < 1e-3
        largest = max(each.abs().max() for each in expected[1].values())
        for (_, got), each in zip_equal(gradients.items(), expected[1].values()):
            assert (got - each).abs().max() < 1e-2 * largest


def test_synchronized_norms():
    """They train as others do in a single process, and can be folded."""
    model = make_backbone(norm_cfg=dict(type='SyncBN')).to(DEVICE)
    other = make_backbone()
    other.load_state_dict(model.state_dict())
    other.to(DEVICE)
    for got, expected in zip_equal(run(model, X.to(DEVICE))[0], run(other, X.to(DEVICE))[0]):
        assert relative_error(got, expected) < 1e-4
    with torch.no_grad():
        expected = model.eval()(X.to(DEVICE))
        for got, each in zip_equal(switch_to_deploy(model)(X.to(DEVICE)), expected):
            assert relative_error(got, each) < 1e-4


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.float16, 0.01), (torch.bfloat16, 0.05)]
)
def test_fused_activation(dtype, tolerance, layout):
    """The Triton kernel, forward and backward, against float64."""
    fused_activation = pytest.importorskip('fused_activation')
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(2, 40, 15, 14, generator=generator).contiguous(memory_format=layout),
        torch.randn(40, 1, 7, 7, generator=generator),
        torch.randn(40, generator=generator),
    ]
    tensors = [tensor.to(DEVICE, dtype) for tensor in tensors]

    got = with_gradients(fused_activation.relu_depthwise, *tensors)
    expected = with_gradients(activate, *(tensor.double() for tensor in tensors))
    for one, other in zip_equal(got, expected):
        assert relative_error(one.double(), other) < tolerance
