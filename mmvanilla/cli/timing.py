"""Timing functions that take turns, so that the noise of the machine affects all alike."""

import platform
import re
import time
from statistics import median
from typing import Any, Callable, List, Sequence

import torch
from torch.utils import collect_env


def time_by_turns(
    functions: Sequence[Callable[[], Any]], rounds: int, warmup: int = 2, device: str = 'cpu'
) -> List[float]:
    """Median seconds of each function, all taking turns.

    Args:
        functions: What to time.
        rounds: How many times each is timed.
        warmup: How many times each is called before that.
        device: 'cuda' for functions that queue work on a GPU, whose clock then measures.
    """
    seconds = stopwatch(device)
    times = [[seconds(function) for function in functions] for _ in range(warmup + rounds)]
    return [median(mine) for mine in zip(*times[warmup:])]


def stopwatch(device: str) -> Callable[[Callable[[], Any]], float]:
    """What calls a function and returns its seconds, with those of the work that it queues."""
    return _seconds_on_gpu if device == 'cuda' else _seconds


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _seconds_on_gpu(function: Callable[[], Any]) -> float:
    """By the clock of a GPU, which is idle before: pauses between the kernels count too."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def describe_machine(device: str) -> str:
    """Device, threads and torch version, which published measurements must name."""
    if device == 'cuda':
        name = torch.cuda.get_device_name()
    else:
        found = re.search(r'Model name:\s*(.+)', collect_env.run('lscpu')[1])
        name = f'{found[1] if found else platform.machine()}, {torch.get_num_threads()} threads'
    return f'{name}, torch {torch.__version__}'
