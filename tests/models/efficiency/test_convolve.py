import copy

import pytest
import torch
from helpers.networks import randomize
from helpers.versions import torch_has
from torch import nn
from torch.profiler import profile

from mmvanilla import VanillaNet, switch_to_deploy
from mmvanilla.models import DeepConv
from mmvanilla.models.efficiency.convolve import convolve


class Convolve(nn.Module):
    def __init__(self, *args, **kwargs):
        super().__init__()
        self.conv = nn.Conv2d(*args, **kwargs)

    def forward(self, x):
        return convolve(self.conv, x)


def operators(function):
    with profile() as profiler:
        function()
    return {event.key for event in profiler.key_averages()}


@pytest.mark.parametrize('memory_format', [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    'geometry',
    [
        dict(kernel_size=1),
        dict(kernel_size=1, bias=False),
        dict(kernel_size=1, stride=2),
        dict(kernel_size=1, padding=1),
        dict(kernel_size=1, groups=4),
        dict(kernel_size=4, stride=4),
    ],
    ids=str,
)
def test_equals_conv(geometry, memory_format):
    torch.manual_seed(0)
    conv = Convolve(8, 12, **geometry).double()
    reference = nn.Conv2d(8, 12, **geometry).double()
    reference.load_state_dict(conv.conv.state_dict())
    results = []
    for module in (conv, reference):
        x = torch.randn(3, 8, 8, 4, generator=torch.Generator().manual_seed(1)).double()
        x = x.contiguous(memory_format=memory_format).requires_grad_()
        y = module(x)
        y.square().sum().backward()
        results.append([y, x.grad, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    'memory_format, product', [(torch.channels_last, True), (torch.contiguous_format, False)]
)
def test_when_it_is_a_product(memory_format, product):
    conv = Convolve(8, 12, 1)
    x = torch.rand(3, 8, 8, 4).contiguous(memory_format=memory_format)
    assert ('aten::linear' in operators(lambda: conv(x))) == product
    assert conv(x).is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize(
    ('channels', 'operator'), [(16, torch.ops.aten.conv2d), (12, torch.ops.aten.linear)]
)
def test_what_tracers_and_compilers_see(channels, operator):
    conv, x = (
        Convolve(8, channels, 1),
        torch.rand(3, 8, 8, 4).contiguous(memory_format=torch.channels_last),
    )
    assert 'aten::_convolution' in str(torch.jit.trace(conv, x).inlined_graph)
    if torch_has('2.6'):  # earlier compilers do not look into subclasses of torch's own modules
        exported = torch.export.export(conv, (x,)).graph
        assert operator.default in {node.target for node in exported.nodes}


def test_precision_of_autocast():
    conv, x = (
        Convolve(8, 12, 1),
        torch.rand(3, 8, 8, 4).contiguous(memory_format=torch.channels_last),
    )
    with torch.autocast('cpu', torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), conv.conv(x), rtol=0.02, atol=0.02)


@pytest.mark.parametrize('of_all', [False, True])
@pytest.mark.parametrize('training', [False, True])
def test_hooks_see_every_module(of_all, training):
    """Of a single module or of all: feature extractors, profilers, quantizers, sharded training."""
    backbone = VanillaNet('5', widen_factor=1 / 64).train(training)
    seen = []

    def hook(module, inputs, output):
        seen.append(module)

    if of_all:
        handles = [nn.modules.module.register_module_forward_hook(hook)]
    else:
        handles = [m.register_forward_hook(hook) for m in backbone.modules()]
    backbone(torch.rand(2, 3, 64, 64))
    for handle in handles:
        handle.remove()
    assert set(seen) == set(backbone.modules()) - {backbone.blocks}


BACKWARD = (
    'register_module_full_backward_hook',
    'register_module_full_backward_pre_hook',
    'register_full_backward_hook',
    'register_full_backward_pre_hook',
)


@pytest.mark.parametrize('kind', BACKWARD)
def test_backward_hooks_see_every_module(kind):
    of_all = nn.modules.module if kind.startswith('register_module') else None
    if not hasattr(of_all or nn.Module, kind):
        pytest.skip('new in torch 2.0')
    backbone = VanillaNet('5', widen_factor=1 / 64).train()
    seen = []

    def hook(module, *gradients):
        seen.append(module)

    if of_all:
        handles = [getattr(of_all, kind)(hook)]
    else:
        convs = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
        handles = [getattr(m, kind)(hook) for m in convs]
    backbone(torch.rand(2, 3, 64, 64, requires_grad=True))[0].sum().backward()
    for handle in handles:
        handle.remove()
    for conv in (m for m in backbone.modules() if isinstance(m, nn.Conv2d)):
        assert seen.count(conv) == 1


class Doubling(DeepConv):
    def forward(self, x):
        return 2 * super().forward(x)


def patch(module):
    usual = module.forward
    module.forward = lambda *args: 2 * usual(*args)


def double_conv(block):
    block.conv.__class__ = Doubling


def add_dropout(block):
    block.pool = nn.Sequential(block.pool, nn.Dropout2d(0.5))


def add_random_activation(block):
    block.act = nn.Sequential(block.act, nn.Dropout())


CHANGES = {
    'subclass of the pair': double_conv,
    'patched pair': lambda block: patch(block.conv),
    'patched activation': lambda block: patch(block.act),
    'patched convolution': lambda block: patch(block.conv.conv1),
    'random pooling': add_dropout,
    'random slope': lambda block: setattr(block.conv, 'act', nn.RReLU()),
    'random activation': lambda block: setattr(
        block, 'act', nn.Sequential(block.act, nn.Dropout())
    ),
    'another convolution': lambda block: setattr(block, 'conv', nn.Conv2d(8, 16, 1)),
}


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('change', CHANGES)
def test_what_users_change(change, with_cp):
    """Modules that users replaced or patched are called, and draw the same random numbers again."""
    backbone = VanillaNet('5', widen_factor=1 / 64, with_cp=with_cp)
    randomize(backbone).double().train()
    CHANGES[change](backbone.blocks[0])
    backbone.double()
    plain = copy.deepcopy(backbone)
    plain.with_cp = False
    if 'patched' in change:  # copies keep the original's forward
        plain = None
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)

    def gradients(network):
        torch.manual_seed(0)
        network.zero_grad()
        loss = network(x)[0].square().mean()
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in network.parameters())]

    got = gradients(backbone)
    reference = backbone if plain is None else plain
    reference.with_cp = False
    handles = [m.register_forward_hook(lambda *args: None) for m in reference.modules()]
    expected = gradients(reference)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_networks_consist_of_torchs_own_modules():
    """So tools that look for these find them: quantizers, pruners, profilers, exporters."""
    backbone = VanillaNet('5', widen_factor=1 / 64)
    leaves = [m for m in backbone.modules() if not list(m.children())]
    ours = {type(m).__name__ for m in leaves if type(m).__module__.startswith('mmvanilla')}
    assert ours == {'DeepActivation'}
    fused = switch_to_deploy(backbone)
    leaves = [m for m in fused.modules() if not list(m.children())]
    assert {type(m) for m in leaves} == {nn.Conv2d, nn.ReLU, nn.Identity, nn.MaxPool2d}
