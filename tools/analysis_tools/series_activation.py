"""Times the parts of the series activation, forward and backward, against what the device can do.

The limit is the longer of two times: each map read or written once at the speed of a large copy,
and the arithmetic of the convolution at the speed of a large matrix product; both are measured too.
On a GPU, *fused* is ReLU and convolution in one Triton kernel.
"""

import argparse
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from typing import Any, Callable, Dict, Iterator, List, Tuple

import torch
from packaging.version import Version
from torch import Tensor, nn

from mmvanilla.cli.options import add_device, one_sentence_errors
from mmvanilla.cli.tables import print_table
from mmvanilla.cli.timing import describe_machine, time_by_turns
from mmvanilla.errors import UsageError

# Channels and size of the maps in VanillaNet-13, for a 224x224 image.
MAPS = [(512, 56), (1024, 28), (2048, 14), (4096, 7)]
DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}
LAYOUTS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
HEAD = ('map', 'part', 'layout', 'pass', 'limited by', 'ms', 'limit (ms)', 'times the limit')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--act-num', type=int, default=3, help='the series number n')
    parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=['float32'])
    parser.add_argument('--rounds', type=int, default=10, help='how many times each is timed')
    add_device(parser)
    return parser.parse_args()


def measure_speeds(dtype: torch.dtype, rounds: int, device: str) -> Tuple[float, float]:
    """Bytes moved in a second by a large copy, operations in a second by a large product."""
    numbers, side = (2**29, 8192) if device == 'cuda' else (2**25, 2048)
    source = torch.rand(numbers, dtype=dtype, device=device)
    target = torch.empty_like(source)
    matrix = torch.rand(side, side, dtype=dtype, device=device)
    copying, multiplying = time_by_turns(
        [partial(target.copy_, source), partial(torch.mm, matrix, matrix)], rounds, device=device
    )
    return 2 * source.numel() * source.element_size() / copying, 2 * side**3 / multiplying


class Fused(nn.Conv2d):
    """The depthwise convolution of a ReLU, in one kernel."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kernel = import_module('fused_activation').relu_depthwise  # needs Triton

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel(x, self.weight, self.bias)


def has_triton() -> bool:
    """Whether there is a Triton that takes the kernel."""
    return find_spec('triton') is not None and Version(version('triton')) >= Version('3.4')


def make_parts(channels: int, act_num: int, device: str) -> Dict[str, nn.Module]:
    size = (channels, channels, 2 * act_num + 1)
    options = dict(padding=act_num, groups=channels, bias=False)
    parts = {
        'ReLU': nn.ReLU(),
        'depthwise': nn.Conv2d(*size, **options),
        'norm': nn.BatchNorm2d(channels),
    }
    if device == 'cuda' and has_triton():
        parts['fused'] = Fused(*size, **options)
    return parts


def make_passes(part: nn.Module, x: Tensor) -> Dict[str, Callable[[], object]]:
    """The forward pass and the backward pass of a part, as functions to time."""
    x = x.detach().requires_grad_()
    y = part(x)
    inputs = [x, *part.parameters()]
    gradient = torch.ones_like(y)
    return {
        'forward': torch.no_grad()(partial(part, x)),
        'backward': partial(torch.autograd.grad, y, inputs, gradient, retain_graph=True),
    }


def repeated(function: Callable[[], object], times: int) -> None:
    """Calls a function several times: a GPU then need not wait for Python but before the first."""
    for _ in range(times):
        function()


def measure(name: str, args: argparse.Namespace) -> Iterator[List[str]]:
    """The rows of ``HEAD`` in a dtype."""
    dtype, device = DTYPES[name], args.device
    bandwidth, arithmetic = measure_speeds(dtype, args.rounds, device)
    print(f'\n{name}: {bandwidth / 1e9:.1f} GB/s, {arithmetic / 1e9:.0f} Gflop/s\n', flush=True)
    for channels, size in MAPS:
        passes = {}
        for layout, memory_format in LAYOUTS.items():
            x = torch.randn(args.batch_size, channels, size, size, dtype=dtype, device=device)
            x = x.contiguous(memory_format=memory_format)
            for part, module in make_parts(channels, args.act_num, device).items():
                module = module.to(device, dtype)
                for which, function in make_passes(module, x).items():
                    passes[part, layout, which] = function
        repeats = 20 if device == 'cuda' else 1
        functions = [partial(repeated, each, repeats) for each in passes.values()]
        times = time_by_turns(functions, args.rounds, device=device)
        for (part, layout, which), each in zip(passes, times):
            seconds = each / repeats
            bytes_moved = x.numel() * x.element_size() * (2 if which == 'forward' else 3)
            taps = (2 * args.act_num + 1) ** 2 if part in ('depthwise', 'fused') else 0
            operations = x.numel() * 2 * taps * (1 if which == 'forward' else 2)
            limits = {'bytes': bytes_moved / bandwidth, 'flops': operations / arithmetic}
            by = max(limits, key=limits.get)
            yield [
                *(f'{channels}@{size}', part, layout, which, by),
                *(f'{1000 * time:.3f}' for time in (seconds, limits[by])),
                f'{seconds / limits[by]:.1f}',
            ]


def main() -> None:
    args = parse_args()
    if args.device == 'cpu' and 'float16' in args.dtypes:
        raise UsageError('float16 is for GPUs: choose float32 or bfloat16.')
    print(
        f'{describe_machine(args.device)}, batch {args.batch_size}, n = {args.act_num}, medians of '
        f'{args.rounds}'
    )
    for name in args.dtypes:
        rows = measure(name, args)
        first = next(rows)
        print_table(HEAD, chain([first], rows))


if __name__ == '__main__':
    with one_sentence_errors():
        main()
