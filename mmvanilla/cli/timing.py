"""Timing of functions that take turns, so that the noise of the machine falls on all alike."""

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
        rounds: How often each is timed.
        warmup: How often each is called before.
        device: On 'cuda' what they queue is waited for, and timed by the device's own events.
    """
    clock = _cuda_seconds if device == 'cuda' else _seconds
    times = [[clock(function) for function in functions] for _ in range(warmup + rounds)]
    return [median(mine) for mine in zip(*times[warmup:])]


def name_device(device: str) -> str:
    """What the GPU or the CPU calls itself."""
    if device == 'cuda':
        return torch.cuda.get_device_name()
    found = re.search(r'Model name:\s*(.+)', collect_env.get_cpu_info(collect_env.run) or '')
    return found[1] if found else platform.machine()


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _cuda_seconds(function: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000
