"""ReLU and depthwise convolution by PyTorch; gradients of it, or of the kernel that fuses them."""

import torch
from torch.nn import functional as F


def activate(x, weight, bias=None):
    return F.conv2d(x.relu(), weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))


def with_gradients(function, *tensors):
    """The output of a function, and its inputs' gradients for a weighted sum of the outputs."""
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    out = function(*tensors)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype, device=out.device)
    return [out.detach(), *torch.autograd.grad((out * weights.reshape(out.shape)).sum(), tensors)]
