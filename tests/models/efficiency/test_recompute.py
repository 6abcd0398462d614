from functools import partial

import pytest
import torch
from helpers.networks import call_and_count, randomize
from torch import nn

from mmvanilla import VanillaNet, set_deep_training_lambda
from mmvanilla.models.efficiency.recompute import recompute_in_backward

# Channels, size before pooling and stride of pooling, for each layer of '8' at 1/64 of its width.
LAYERS = [(8, 16, 1), (8, 16, 1), (16, 16, 2), (32, 8, 2), (32, 4, 1), (64, 4, 2), (64, 2, 1)]


def narrow(**kwargs):
    torch.manual_seed(0)
    return randomize(VanillaNet('8', widen_factor=1 / 64, **kwargs)).train()


def step(backbone, between=lambda: None):
    """Runs a training step; returns its gradients and running statistics."""
    set_deep_training_lambda(backbone, 0.3)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    loss = backbone(images)[0].square().mean()
    between()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in backbone.named_parameters()}
    return gradients, dict(backbone.named_buffers())


def assert_equal(steps):
    for one, other in zip(*steps):
        assert one.keys() == other.keys()
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize('norm_eval', [False, True])
def test_changes_nothing(norm_eval, monkeypatch):
    recomputed = step(narrow(norm_eval=norm_eval))
    monkeypatch.setattr('mmvanilla.models.efficiency.on_cpu.recomputes', lambda *_: False)
    assert_equal([recomputed, step(narrow(norm_eval=norm_eval))])


@pytest.mark.parametrize('with_cp', [False, True])
def test_mode_changed_before_backward(with_cp):
    steps = []
    for mode in (True, False):
        backbone = narrow(with_cp=with_cp)
        steps.append(step(backbone, between=partial(backbone.train, mode)))
        assert {module.training for module in backbone.modules()} == {mode}
    assert_equal(steps)


@pytest.mark.parametrize('merged', [False, True])
def test_what_is_kept(merged, tmp_path):
    backbone = narrow(merged=merged)
    images = torch.rand(4, 3, 64, 64)
    backbone(images)  # allocates what is made only once
    features, kept = call_and_count(lambda: backbone(images), tmp_path)
    numbers = 3 * 64 * 64  # the image in channels_last
    previous = 8
    for channels, size, stride in LAYERS:
        if not merged:
            numbers += previous * size**2  # after the first convolution
        numbers += channels * size**2  # after the second
        numbers += 2 * channels * (size // stride) ** 2  # after the depthwise one, after its norm
        previous = channels
    statistics = sum(2 * channels for channels, _, _ in LAYERS)  # batch statistics of act.norm
    assert features[0].shape == (4, 64, 2, 2)
    assert kept == 4 * (len(images) * numbers + statistics)


@pytest.mark.parametrize('training', [False, True])
def test_only_in_training(training):
    conv = nn.Conv2d(1, 1, 1).train(training)
    runs = []
    y = recompute_in_backward(lambda x: runs.append(1) or conv(x), torch.rand(1, 1, 2, 2), conv)
    y.sum().backward()
    assert len(runs) == 1 + training


def test_two_forward_passes_under_ddp(tmp_path):
    """Recomputing for one graph leaves alone what the other has saved."""
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(3))
        plain, wrapped = narrow(), narrow()
        ddp = nn.parallel.DistributedDataParallel(wrapped, broadcast_buffers=False)
        for network in (plain, ddp):
            loss = sum(network(images)[0].square().mean() for _ in range(2))
            loss.backward()
        for expected, got in zip(plain.parameters(), wrapped.parameters()):
            torch.testing.assert_close(got.grad, expected.grad, rtol=0, atol=0)
    finally:
        torch.distributed.destroy_process_group()


PASSES = {
    'through one graph twice': lambda loss: _backward_twice(loss()),
    'in reverse order': lambda loss: [each.backward() for each in reversed([loss(), loss()])],
    'with a graph of the gradients': lambda loss: loss().backward(create_graph=True),
}


def _backward_twice(loss):
    loss.backward(retain_graph=True)
    loss.backward()


@pytest.mark.parametrize('passes', PASSES)
@pytest.mark.parametrize('kwargs', [{}, dict(with_cp=True), dict(merged=True)], ids=str)
def test_other_backward_passes(kwargs, passes, monkeypatch):
    """Whatever is done with the graph, gradients and statistics are those without recomputing."""
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    found = []
    for recomputing in (True, False):
        if not recomputing:
            for module in ('recompute', 'on_cpu'):
                place = f'mmvanilla.models.efficiency.{module}.recomputes'
                monkeypatch.setattr(place, lambda module: False)
        network = narrow(**kwargs)
        PASSES[passes](lambda network=network: network(images)[0].square().mean())
        found.append(
            [p.grad.detach() for p in network.parameters()] + [b.clone() for b in network.buffers()]
        )
    for got, expected in zip(*found):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
