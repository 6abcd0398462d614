"""Measures what activation checkpointing (with_cp) saves and costs in a backbone's training step.

Each variant runs in a process of its own: peak memory is the process's largest resident size less
that before the first step.
"""

import argparse
import multiprocessing
import resource
import time
from statistics import median
from typing import Dict, Tuple

import torch

from mmvanilla import VanillaNet

STEPS = 4


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--arch', default='13')
    parser.add_argument('--widen-factor', type=float, default=1.0)
    parser.add_argument('--batch-size', type=int, default=4)
    parser.add_argument('--shape', type=int, nargs=2, default=(640, 400), metavar=('H', 'W'))
    return parser.parse_args()


def measure(
    arch: str, widen_factor: float, size: Tuple[int, ...], with_cp: bool, found: Dict
) -> None:
    """Puts peak memory (MiB) and the median time (s) of training steps into ``found``."""
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
    found[with_cp] = grown / 1024, median(times[1:])


def main() -> None:
    args = parse_args()
    size = (args.batch_size, 3, *args.shape)
    spawning = multiprocessing.get_context('spawn')
    found = spawning.Manager().dict()
    for with_cp in (False, True):
        process = spawning.Process(
            target=measure, args=(args.arch, args.widen_factor, size, with_cp, found)
        )
        process.start()
        process.join()
    (memory, seconds), (memory_cp, seconds_cp) = found[False], found[True]
    print(
        f'VanillaNet-{args.arch}, {args.batch_size} images of {size[2]}x{size[3]}, '
        f'{torch.get_num_threads()} threads, torch {torch.__version__}\n'
        f'with_cp=False  {memory:.0f} MiB, {seconds:.2f} s a step\n'
        f'with_cp=True   {memory_cp:.0f} MiB, {seconds_cp:.2f} s a step\n'
        f'               {memory_cp / memory:.2f} of the memory, '
        f'{seconds_cp / seconds:.2f} times the time'
    )


if __name__ == '__main__':
    main()
