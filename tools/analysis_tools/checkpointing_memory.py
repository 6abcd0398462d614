"""Measures what activation checkpointing (with_cp) saves and costs in a backbone's training step.

Each measurement runs in its own process; the variants take turns; results are medians. Memory is
the process's largest resident size minus that before the first step.
"""

import argparse
import resource
import time
from statistics import median
from typing import Tuple

import torch
from new_process import in_new_process

from mmvanilla import VanillaNet
from mmvanilla.cli.options import one_sentence_errors
from mmvanilla.cli.timing import describe_machine
from mmvanilla.compatibility import meta_device

ROUNDS = 3
STEPS = 3


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--arch', default='13')
    parser.add_argument('--widen-factor', type=float, default=1.0)
    parser.add_argument('--batch-size', type=int, default=4)
    parser.add_argument('--shape', type=int, nargs=2, default=(640, 400), metavar=('H', 'W'))
    return parser.parse_args()


def measure(
    arch: str, widen_factor: float, size: Tuple[int, ...], with_cp: bool
) -> Tuple[float, float]:
    """Peak memory (MiB) and median time (s) of training steps."""
    backbone = VanillaNet(
        arch, out_indices=(0, 1, 2, 3), widen_factor=widen_factor, with_cp=with_cp
    ).train()
    images = torch.rand(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        sum(features.mean() for features in backbone(images)).backward()
        backbone.zero_grad()
        times.append(time.perf_counter() - start)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    return grown / 1024, median(times[1:])


def main() -> None:
    args = parse_args()
    size = (args.batch_size, 3, *args.shape)
    with meta_device():  # raises UsageError for wrong options
        VanillaNet(args.arch, widen_factor=args.widen_factor)
    found = {False: [], True: []}
    for _ in range(ROUNDS):
        for with_cp, mine in found.items():
            mine.append(in_new_process(measure, args.arch, args.widen_factor, size, with_cp))
    memory, seconds = zip(*(map(median, zip(*mine)) for mine in found.values()))
    print(
        f'VanillaNet-{args.arch}, {args.batch_size} images of {size[2]}x{size[3]}, '
        f'{describe_machine("cpu")}\n'
        f'with_cp=False  {memory[0]:.0f} MiB, {seconds[0]:.2f} s a step\n'
        f'with_cp=True   {memory[1]:.0f} MiB, {seconds[1]:.2f} s a step\n'
        f'               {memory[1] / memory[0]:.2f} of the memory, '
        f'{seconds[1] / seconds[0]:.2f} times the time'
    )


if __name__ == '__main__':
    with one_sentence_errors():
        main()
