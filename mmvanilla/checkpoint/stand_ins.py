"""Stand-ins for the few classes that training checkpoints hold beside plain values and tensors.

Each accepts what mmengine (or the authors, for Namespace) writes, and refuses everything else.
Importing this module adds them to torch's safe globals where mmengine, on torch >= 2.6, needs that
to read its own checkpoints. This makes nothing less safe.
"""

import pickle
from argparse import Namespace
from math import prod
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

from ..compatibility import add_to_torch_load


class RefusedError(pickle.UnpicklingError):
    """The file holds something that is not allowed; the message names it."""


def require(condition: bool, what: str) -> None:
    """Raises RefusedError unless the condition holds; ``what`` must not contain file contents."""
    if not condition:
        raise RefusedError(what)


def are_sizes(values: Any) -> bool:
    """Whether they can be a shape or strides."""
    return (
        type(values) in (tuple, torch.Size)
        and len(values) <= 64
        and all(type(n) is int and 0 <= n < 1 << 63 for n in values)
    )


class _DType:
    """Stands in for ``numpy.dtype``: only plain numbers in the machine's byte order."""

    codes = ('b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8')

    def __new__(cls, code: Any, align: Any = False, copy: Any = True) -> '_DType':
        require(type(code) is str and code in cls.codes, 'a numpy.dtype of something else')
        self = super().__new__(cls)
        self.numpy = np.dtype(code)
        return self

    def __setstate__(self, state: Any) -> None:
        known = type(state) is tuple and all(type(x) in (int, str, type(None)) for x in state)
        plain = [(3, order, None, None, None, -1, -1, 0) for order in '<|=']
        require(known and state in plain, 'a numpy.dtype of something else')


class _Array(np.ndarray):
    """Stands in for ``numpy.ndarray``: only arrays of plain numbers, with all their bytes."""

    def __new__(cls) -> '_Array':
        return super().__new__(cls, (0,), np.int8)

    def __setstate__(self, state: Any) -> None:
        require(type(state) is tuple and len(state) == 5 and self.size == 0, 'a crafted array')
        version, shape, dtype, fortran, raw = state
        require(type(version) is int and version == 1, 'a crafted array')
        require(type(dtype) is _DType and type(raw) is bytes, 'an array of objects')
        require(are_sizes(shape), 'an array of another shape')
        require(prod(shape) * dtype.numpy.itemsize == len(raw), 'an array of another size')
        raw = bytes(bytearray(raw))  # a copy: numpy would share the bytes
        super().__setstate__((1, shape, dtype.numpy, fortran is True, raw))

    def __reduce_ex__(self, protocol: int) -> Any:  # saved as an ordinary array
        return self.view(np.ndarray).__reduce_ex__(protocol)


def _new_array(cls: Any, shape: Any, code: Any) -> _Array:
    """Stands in for numpy's ``_reconstruct``."""
    require(cls is _Array, 'numpy._reconstruct of something else')
    return _Array()


def _scalar(dtype: Any, raw: Any) -> np.generic:
    """Stands in for numpy's ``scalar``."""
    require(type(dtype) is _DType and type(raw) is bytes, 'a numpy scalar of an object')
    require(len(raw) == dtype.numpy.itemsize, 'a numpy scalar of another size')
    return np.frombuffer(raw, dtype.numpy)[0]


_STATISTICS = ('min', 'max', 'current', 'mean')
_ONE_CYCLE = 'OneCycleParamScheduler'  # for the class; only two of its functions are allowed
_ANNEALING = ('_annealing_cos', '_annealing_linear')


def _attribute(owner: Any, name: Any) -> Any:
    """Stands in for ``getattr``, by which mmengine pickles functions of two of its classes.

    Statistics of HistoryBuffer are returned as their names.
    """
    require(type(name) is str, 'getattr of something other than a function of mmengine')
    if owner is _ONE_CYCLE and name in _ANNEALING:
        return getattr(OneCycleParamScheduler, name)
    known = owner is StandInHistoryBuffer and name in _STATISTICS
    require(known, 'getattr of something other than a function of mmengine')
    return name


class StandInHistoryBuffer(HistoryBuffer):
    """Stands in for mmengine's, which would register any statistics for all logs of the process."""

    def __init__(self) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        require(type(state) is dict, 'a crafted HistoryBuffer')
        statistics = state.get('statistics_methods', {})
        logs = {name: state.get(name) for name in ('_log_history', '_count_history')}
        length = state.get('max_length')
        known = state.keys() <= {'max_length', 'statistics_methods', *logs}
        known = known and type(statistics) is dict and type(length) is int
        require(known, 'a crafted HistoryBuffer')
        for name, statistic in statistics.items():
            known = type(statistic) is str and statistic == name and name in _STATISTICS
            require(known, 'a HistoryBuffer with statistics of its own')
        for log in logs.values():
            require(type(log) is _Array and log.ndim == 1, 'a HistoryBuffer of other logs')
        self.__class__ = HistoryBuffer
        self.__dict__.update({name: np.array(log) for name, log in logs.items()}, max_length=length)
        self._set_default_statistics()


class StandInNamespace(Namespace):
    """Stands in for argparse's, which the authors' files use for their command line."""

    def __init__(self) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        require(type(state) is dict, 'a crafted Namespace')
        self.__class__ = Namespace
        self.__dict__.update(state)


STAND_INS = {
    'mmengine.logging.history_buffer.HistoryBuffer': StandInHistoryBuffer,
    'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler': _ONE_CYCLE,
    'builtins.getattr': _attribute,
    'argparse.Namespace': StandInNamespace,
    'numpy.dtype': _DType,
    'numpy.ndarray': _Array,
    # numpy 2 moved these two
    'numpy._core.multiarray._reconstruct': _new_array,
    'numpy.core.multiarray._reconstruct': _new_array,
    'numpy._core.multiarray.scalar': _scalar,
    'numpy.core.multiarray.scalar': _scalar,
}
BUILT = tuple(each for each in STAND_INS.values() if isinstance(each, type))

add_to_torch_load(STAND_INS)
