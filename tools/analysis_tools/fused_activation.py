"""ReLU and depthwise convolution of the series activation in one Triton kernel, for GPUs.

The network does not use it: ``series_activation.py`` measures whether it is faster than PyTorch.
"""

from typing import Optional, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS, CHANNELS = 64, 32  # of a block, in channels_last; the other way round in the usual layout
PARTS = 32  # of the sum over pixels that a weight's gradient is


@triton.jit
def _place(block, sizes, strides, BLOCK: tl.constexpr):
    """Rows, columns and offsets of the pixels of a block, and which of them exist."""
    number, height, width = sizes
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    row, column = pixel // width % height, pixel % width
    image = (pixel // (width * height)).to(tl.int64)
    offset = image * strides[0] + row * strides[2] + column * strides[3]
    return row, column, offset, pixel < number * height * width


@triton.jit
def _convolve(
    x,
    gradient,
    weight,
    bias,
    out,
    number,
    channels,
    height,
    width,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    KERNEL: tl.constexpr,
    IS_BACKWARD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """``conv(relu(x))``, or the gradient of x: the mirrored convolution of that of the outputs."""
    strides = (stride_n, stride_c, stride_h, stride_w)
    row, column, offset, exists = _place(tl.program_id(0), (number, height, width), strides, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    places = offset[:, None] + channel[None, :] * stride_c
    exists = exists[:, None] & is_channel[None, :]
    total = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    for i in tl.static_range(KERNEL):
        for j in tl.static_range(KERNEL):
            down, right = i - KERNEL // 2, j - KERNEL // 2
            if IS_BACKWARD:
                down, right = -down, -right
            inside = (row + down >= 0) & (row + down < height)
            inside = inside & (column + right >= 0) & (column + right < width)
            moved = places + down * stride_h + right * stride_w
            mask = exists & inside[:, None]
            if IS_BACKWARD:
                value = tl.load(gradient + moved, mask=mask, other=0.0).to(tl.float32)
            else:
                value = tl.load(x + moved, mask=mask, other=0.0).to(tl.float32)
                value = tl.maximum(value, 0.0)
            tap = tl.load(weight + (channel * KERNEL + i) * KERNEL + j, mask=is_channel, other=0.0)
            total += value * tap.to(tl.float32)[None, :]
    if IS_BACKWARD:
        total = tl.where(tl.load(x + places, mask=exists, other=0.0) > 0, total, 0.0)
    if HAS_BIAS:
        total += tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    tl.store(out + places, total.to(out.dtype.element_ty), mask=exists)


@triton.jit
def _weight_gradient(
    x,
    gradient,
    out,
    number,
    channels,
    height,
    width,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    KERNEL: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """A part of the gradient (parts, KERNEL * KERNEL, C) of the weights: some pixels of one tap."""
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    tap = tl.program_id(2)
    down, right = tap // KERNEL - KERNEL // 2, tap % KERNEL - KERNEL // 2
    total = tl.zeros((CHANNELS,), dtype=tl.float32)
    for step in range(STEPS):
        block = step * tl.num_programs(0) + tl.program_id(0)
        row, column, offset, exists = _place(
            block, (number, height, width), (stride_n, stride_c, stride_h, stride_w), PIXELS
        )
        inside = (row + down >= 0) & (row + down < height)
        inside = inside & (column + right >= 0) & (column + right < width)
        places = offset[:, None] + channel[None, :] * stride_c
        mask = (exists & inside)[:, None] & is_channel[None, :]
        value = tl.load(x + places + down * stride_h + right * stride_w, mask=mask, other=0.0)
        given = tl.load(gradient + places, mask=mask, other=0.0)
        total += tl.sum(tl.maximum(value.to(tl.float32), 0.0) * given.to(tl.float32), axis=0)
    place = (tl.program_id(0) * tl.num_programs(2) + tap) * channels + channel
    tl.store(out + place, total, mask=is_channel)


def _blocks(x: Tensor) -> Tuple[int, int]:
    """Pixels and channels of a block: what lies side by side is read together."""
    return (PIXELS, CHANNELS) if x.stride(1) == 1 else (16 * PIXELS, 1)


def _launch(
    x: Tensor, gradient: Optional[Tensor], weight: Tensor, bias: Optional[Tensor]
) -> Tensor:
    out = torch.empty_like(x)
    number, channels, height, width = x.shape
    pixels, at_once = _blocks(x)
    grid = (triton.cdiv(number * height * width, pixels), triton.cdiv(channels, at_once))
    _convolve[grid](
        x,
        gradient,
        weight,
        bias,
        out,
        *(number, channels, height, width),
        *x.stride(),
        KERNEL=weight.shape[-1],
        IS_BACKWARD=gradient is not None,
        HAS_BIAS=bias is not None,
        PIXELS=pixels,
        CHANNELS=at_once,
    )
    return out


class _ReluDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _launch(x, None, weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tuple[Optional[Tensor], ...]:
        x, weight = ctx.saved_tensors
        if gradient.stride() != x.stride():
            gradient = torch.empty_like(x).copy_(gradient)
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _launch(x, gradient, weight, None)
        if ctx.needs_input_grad[1]:
            number, channels, height, width = x.shape
            kernel = weight.shape[-1]
            pixels, at_once = _blocks(x)
            blocks = triton.cdiv(number * height * width, pixels)
            parts = x.new_empty(
                (min(PARTS, blocks), kernel * kernel, channels), dtype=torch.float32
            )
            _weight_gradient[(len(parts), triton.cdiv(channels, at_once), kernel * kernel)](
                x,
                gradient,
                parts,
                *(number, channels, height, width),
                *x.stride(),
                STEPS=triton.cdiv(blocks, len(parts)),
                KERNEL=kernel,
                PIXELS=pixels,
                CHANNELS=at_once,
            )
            of_weight = parts.sum(0).T.reshape(weight.shape).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias


def relu_depthwise(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """``conv(relu(x))`` with a depthwise convolution that keeps the size of the maps.

    Args:
        x: Maps (N, C, H, W), contiguous or channels_last.
        weight: (C, 1, K, K) with an odd K.
        bias: (C,)
    """
    return _ReluDepthwise.apply(x, weight, bias)
