"""ReLU and depthwise convolution in one kernel: by Triton's interpreter, against float64."""

from itertools import product

import pytest
import torch
from helpers.fused_activation_pass import activate, with_gradients
from helpers.networks import relative_error
from helpers.pairs import zip_equal
from new_process import in_new_process

pytest.importorskip('triton')
CASES = list(
    product(
        [torch.contiguous_format, torch.channels_last],
        # Sizes of maps, the series number, whether there is a bias
        [((2, 5, 4, 3), 2, False), ((1, 33, 2, 5), 1, True), ((3, 1, 9, 1), 1, True)],
    )
)


def errors_of_kernel():
    """The largest errors of outputs and gradients, by case."""
    from fused_activation import relu_depthwise
    from series_activation import Fused

    found = []
    for layout, (size, act_num, has_bias) in CASES:
        torch.manual_seed(0)
        channels, kernel = size[1], 2 * act_num + 1
        part = Fused(channels, channels, kernel, padding=act_num, groups=channels, bias=has_bias)
        tensors = [torch.randn(size).contiguous(memory_format=layout), *part.parameters()]
        got = with_gradients(relu_depthwise, *tensors)
        expected = with_gradients(activate, *(tensor.double() for tensor in tensors))
        pairs = [*zip_equal(got, expected), (part(tensors[0]).detach(), expected[0])]
        found.append(max(relative_error(one, other) for one, other in pairs))
    return found


def test_kernel_is_that_of_float64(monkeypatch):
    monkeypatch.setenv('TRITON_INTERPRET', '1')  # Triton reads it when it is imported
    errors = in_new_process(errors_of_kernel)
    assert len(errors) == len(CASES) and max(errors) < 1e-6
