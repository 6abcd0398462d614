import pytest
import torch
import torch.nn.functional as F
from helpers.versions import torch_has
from torch import nn
from torch.profiler import profile

from mmvanilla.models.efficiency.conv2d import Conv2d


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
    conv, reference = Conv2d(8, 12, **geometry).double(), nn.Conv2d(8, 12, **geometry)
    reference.double().load_state_dict(conv.state_dict())
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
    conv = Conv2d(8, 12, 1)
    x = torch.rand(3, 8, 8, 4).contiguous(memory_format=memory_format)
    assert ('aten::linear' in operators(lambda: conv(x))) == product
    assert conv(x).is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize(
    ('channels', 'operator'), [(16, torch.ops.aten.conv2d), (12, torch.ops.aten.linear)]
)
def test_what_tracers_and_compilers_see(channels, operator):
    conv, x = (
        Conv2d(8, channels, 1),
        torch.rand(3, 8, 8, 4).contiguous(memory_format=torch.channels_last),
    )
    assert 'aten::_convolution' in str(torch.jit.trace(conv, x).inlined_graph)
    if torch_has('2.6'):  # earlier compilers do not look into subclasses of torch's own modules
        exported = torch.export.export(conv, (x,)).graph
        assert operator.default in {node.target for node in exported.nodes}


def test_precision_of_autocast():
    conv, x = (
        Conv2d(8, 12, 1),
        torch.rand(3, 8, 8, 4).contiguous(memory_format=torch.channels_last),
    )
    with torch.autocast('cpu', torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), F.conv2d(x, conv.weight, conv.bias), rtol=0.02, atol=0.02)
