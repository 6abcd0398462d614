"""Reads checkpoint files: nothing in them runs, and no memory but theirs is read.

torch's own reader does not do: it hands out foreign memory where a tensor claims more bytes than
its record holds, it does not compare checksums, and before torch 2.6 it can be made to run code. So
the zip files that torch writes are read here, with Python's zipfile and pickle: plain values,
tensors within their records, and the few classes that training checkpoints need, each by a stand-in
that takes what mmengine writes and refuses all else.

Importing this module puts the stand-ins on torch's list of safe globals, for programs that read
with torch alone: without them mmengine 0.10 cannot read its own checkpoints on torch >= 2.6.
"""

import pickle
import sys
import tarfile
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict
from math import prod
from pathlib import Path
from typing import Any, Dict, Union

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn


class RefusedError(pickle.UnpicklingError):
    """The file holds something that is not allowed; the message names it."""


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise RefusedError(what)


class _DType:
    """Stands in for ``numpy.dtype``: plain numbers in the machine's byte order."""

    def __new__(cls, code: Any, align: Any = False, copy: Any = True) -> '_DType':
        codes = {f'{kind}{size}' for kind in 'iuf' for size in (1, 2, 4, 8)} - {'f1'} | {'b1'}
        _require(isinstance(code, str) and code in codes, f'numpy.dtype of {code!r}')
        self = super().__new__(cls)
        self.numpy = np.dtype(code)
        return self

    def __setstate__(self, state: Any) -> None:
        plain = [(3, order, None, None, None, -1, -1, 0) for order in '<|=']
        _require(type(state) is tuple and repr(state) in map(repr, plain), 'a crafted numpy.dtype')


class _Array(np.ndarray):
    """Stands in for ``numpy.ndarray``: an array of plain numbers, whose bytes are all given."""

    def __new__(cls) -> '_Array':
        return super().__new__(cls, (0,), np.int8)

    def __setstate__(self, state: Any) -> None:
        _require(type(state) is tuple and len(state) == 5 and self.size == 0, 'a crafted array')
        version, shape, dtype, fortran, raw = state
        _require(version == 1 and type(dtype) is _DType and type(raw) is bytes, 'a crafted array')
        _require(type(shape) is tuple and all(type(n) is int and n >= 0 for n in shape), 'a shape')
        _require(prod(shape) * dtype.numpy.itemsize == len(raw), 'an array of another size')
        raw = bytes(bytearray(raw))  # numpy keeps the bytes, which others may hold
        super().__setstate__((1, shape, dtype.numpy, bool(fortran), raw))

    def __reduce_ex__(self, protocol: int) -> Any:  # it is written as any array
        return self.view(np.ndarray).__reduce_ex__(protocol)


def _new_array(cls: Any, shape: Any, code: Any) -> _Array:
    """Stands in for numpy's ``_reconstruct``."""
    _require(cls is _Array, 'numpy._reconstruct of something else than an array')
    return _Array()


def _scalar(dtype: Any, raw: Any) -> np.generic:
    """Stands in for numpy's ``scalar``."""
    _require(type(dtype) is _DType and type(raw) is bytes, 'a numpy scalar of an object')
    _require(len(raw) == dtype.numpy.itemsize, 'a numpy scalar of another size')
    return np.frombuffer(raw, dtype.numpy)[0]


_STATISTICS = ('min', 'max', 'current', 'mean')


def _statistic(owner: Any, name: Any) -> str:
    """Stands in for ``getattr``, by which a HistoryBuffer writes its statistics: gives the name."""
    _require(owner is _HistoryBuffer and name in _STATISTICS, f'getattr of {name!r}')
    return name


class _HistoryBuffer(HistoryBuffer):
    """Stands in for mmengine's, which takes any statistics, for all logs of the process."""

    def __init__(self) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        state = dict(state)
        for name, statistic in state.pop('statistics_methods', {}).items():
            _require(
                name == statistic and name in _STATISTICS, f'a HistoryBuffer with its own {name!r}'
            )
        logs = {name: state.pop(name) for name in ('_log_history', '_count_history')}
        for log in logs.values():
            _require(type(log) is _Array and log.ndim == 1, 'a HistoryBuffer of other logs')
        length = state.pop('max_length')
        _require(type(length) is int and not state, 'a HistoryBuffer of other contents')
        self.__class__ = HistoryBuffer
        self.__dict__.update({name: np.array(log) for name, log in logs.items()}, max_length=length)
        self._set_default_statistics()


class _Namespace(Namespace):
    """Stands in for argparse's, in which the authors' files keep their command line."""

    def __init__(self) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__class__ = Namespace
        self.__dict__.update(state)


STAND_INS = {
    'mmengine.logging.history_buffer.HistoryBuffer': _HistoryBuffer,
    'builtins.getattr': _statistic,
    'argparse.Namespace': _Namespace,
    'numpy.dtype': _DType,
    'numpy.ndarray': _Array,
    # numpy 2 moved these two
    'numpy._core.multiarray._reconstruct': _new_array,
    'numpy.core.multiarray._reconstruct': _new_array,
    'numpy._core.multiarray.scalar': _scalar,
    'numpy.core.multiarray.scalar': _scalar,
}
_BUILT = tuple(each for each in STAND_INS.values() if isinstance(each, type))


def allow_stand_ins() -> None:
    """Puts the stand-ins on torch's list; onedl-mmengine takes them off after use."""
    torch.serialization.add_safe_globals([(each, name) for name, each in STAND_INS.items()])


allow_stand_ins()


class _Storage:
    """The numbers of a record, from which tensors are made."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers


def _tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    dtype: Any = None,
) -> Tensor:
    _require(type(storage) is _Storage, 'a tensor without numbers')
    numbers = storage.numbers if dtype is None else storage.numbers.view(dtype)
    _require(all(type(n) is int and n >= 0 for n in (offset, *size, *stride)), 'a crafted tensor')
    last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if prod(size) else -1
    _require(len(size) == len(stride) and last < len(numbers), 'a tensor beyond its record')
    tensor = numbers.as_strided(size, stride, numbers.storage_offset() + offset)
    return tensor.requires_grad_(bool(requires_grad))


def _parameter(data: Any, requires_grad: Any, hooks: Any = None) -> nn.Parameter:
    return nn.Parameter(data, bool(requires_grad))


def _encode(text: Any, encoding: Any) -> bytes:
    """How pickles of protocol 2 hold bytes."""
    _require(type(text) is str and encoding == 'latin1', f'text in {encoding!r}')
    return text.encode('latin1')


def _no_bytes() -> bytes:
    return b''


_STORAGES = {
    **dict(Float=torch.float32, Double=torch.float64, Half=torch.float16, BFloat16=torch.bfloat16),
    **dict(Byte=torch.uint8, Char=torch.int8, Short=torch.int16, Int=torch.int32),
    **dict(Long=torch.int64, Bool=torch.bool),
    **dict(ComplexFloat=torch.complex64, ComplexDouble=torch.complex128),
}
_ALLOWED = {
    **STAND_INS,
    **{str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)},
    **{f'torch.{name}Storage': dtype for name, dtype in _STORAGES.items()},
    'torch.storage.UntypedStorage': torch.uint8,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _tensor,
    'torch._utils._rebuild_parameter': _parameter,
    'torch.Size': torch.Size,
    'torch.device': torch.device,
    'collections.OrderedDict': OrderedDict,
    'collections.Counter': Counter,  # milestones of mmengine's schedules
    'builtins.set': set,
    'builtins.complex': complex,
    '_codecs.encode': _encode,
    'builtins.bytes': _no_bytes,
}


class _Unpickler(pickle._Unpickler):  # in Python, where each instruction can be replaced
    """Makes plain values, tensors and stand-ins alone."""

    def __init__(self, file: Any, records: '_Records') -> None:
        super().__init__(file, encoding='utf-8')
        self.records = records

    def find_class(self, module: str, name: str) -> Any:
        name = f'{"builtins" if module == "__builtin__" else module}.{name}'
        _require(name in _ALLOWED, name)
        return _ALLOWED[name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, length = pid
        _require(kind == 'storage' and isinstance(dtype, torch.dtype), f'a {kind!r}')
        numbers = self.records.read(f'data/{key}').view(dtype)
        _require(len(numbers) == length, f'a tensor of other bytes than record {key} has')
        return _Storage(numbers)

    def load_build(self) -> None:
        state = self.stack.pop()
        built = self.stack[-1]
        if type(built) is OrderedDict:  # a state dict with its versions
            built.__dict__.update(state)
        else:
            _require(type(built) in _BUILT, f'a state for {type(built).__name__}')
            built.__setstate__(state)

    dispatch = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}


class _Records:
    """The records of a zip file that torch wrote, as tensors of bytes on a device."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, device: Any, mmap: bool) -> None:
        self.archive = archive
        (data,) = (name for name in archive.namelist() if name.endswith('/data.pkl'))
        self.folder = data[: -len('data.pkl')]
        self.device = device
        self.size = path.stat().st_size
        self.file = np.memmap(path, np.uint8, 'c') if mmap else None
        self.kept: Dict[str, Tensor] = {}

    def open(self, name: str) -> Any:
        return self.archive.open(self._info(name))

    def read(self, name: str) -> Tensor:
        if name not in self.kept:
            info = self._info(name)
            if info.file_size == 0:
                record = torch.empty(0, dtype=torch.uint8)
            elif self.file is None:
                with self.archive.open(info) as file:  # which compares the checksum at the end
                    record = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
            else:
                start = self._start(info)
                record = torch.from_numpy(self.file[start : start + info.file_size])
                if start % 16:  # torch aligns records
                    record = record.clone()
            self.kept[name] = record.to(self.device)
        return self.kept[name]

    def _info(self, name: str) -> zipfile.ZipInfo:
        info = self.archive.getinfo(self.folder + name)
        stored = info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size
        _require(stored and info.file_size <= self.size, f'a compressed record {name}')
        return info

    def _start(self, info: zipfile.ZipInfo) -> int:
        """Where the bytes of a record begin: after a header of 30 bytes, its name and extras."""
        header = self.file[info.header_offset : info.header_offset + 30].tobytes()
        lengths = (int.from_bytes(header[i : i + 2], 'little') for i in (26, 28))
        start = info.header_offset + 30 + sum(lengths)
        _require(start + info.file_size <= self.size, f'a record {info.filename} out of the file')
        return start


def read_safely(path: Union[str, Path], device: Any = 'cpu', mmap: bool = False) -> Any:
    """What a file of ``torch.save`` holds.

    Args:
        path: The file.
        device: Where to put the tensors, a device or its name.
        mmap: Whether to leave the tensors in the file until they are used; their checksums are not
            compared then.

    Raises:
        RefusedError: if it holds something that is not allowed, which the message names.
        Exception: of other kinds if it is not whole, or not such a file.
    """
    path = Path(path)
    with open(path, 'rb') as file:
        starts_as_zip = file.read(2) == b'PK'
    if not starts_as_zip:  # written by torch < 1.6
        _require(not tarfile.is_tarfile(path), 'a tar archive')
        allow_stand_ins()
        return torch.load(path, device, weights_only=True)
    with zipfile.ZipFile(path) as archive:
        records = _Records(path, archive, device, mmap)
        if records.folder + 'constants.pkl' in archive.namelist():
            raise RefusedError('a TorchScript program')
        if records.folder + 'byteorder' in archive.namelist():
            with records.open('byteorder') as file:
                _require(file.read() == sys.byteorder.encode(), 'numbers in another byte order')
        with records.open('data.pkl') as file:
            return _Unpickler(file, records).load()
