"""Measuring in processes of their own."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Callable


def in_new_process(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function in a process of its own, whose memory is therefore that of the function."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
        return pool.submit(function, *args).result()
