"""Reads checkpoint files without running anything in them, or reading memory outside them.

torch's own reader is not enough: it returns foreign memory if a tensor claims more bytes than its
record holds, it does not compare checksums, and before torch 2.6 it can be made to run code. So the
files that torch writes are read here, with Python's zipfile and pickle: plain values, tensors
within their records, and stand-ins for the few classes that training checkpoints hold.
"""

import io
import os
import pickle
import re
import struct
import sys
import zipfile
from collections import Counter, OrderedDict
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Dict, Union

import torch
from torch import Tensor, nn

from .stand_ins import BUILT, STAND_INS, StandInHistoryBuffer, StandInNamespace, are_sizes, require


class _Storage:
    """The numbers of a record; tensors are views of them."""

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
    require(type(storage) is _Storage, 'a tensor without numbers')
    require(type(dtype) in (type(None), torch.dtype), 'a crafted tensor')
    numbers = storage.numbers if dtype is None else storage.numbers.view(dtype)
    require(are_sizes((offset,)) and are_sizes(size) and are_sizes(stride), 'a crafted tensor')
    last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if prod(size) else -1
    inside = last < len(numbers) and offset <= len(numbers)
    require(inside and len(size) == len(stride), 'a tensor beyond its record')
    return numbers.as_strided(size, stride, offset).requires_grad_(requires_grad is True)


def _parameter(data: Any, requires_grad: Any = True, hooks: Any = None) -> nn.Parameter:
    require(type(data) is Tensor, 'a crafted parameter')
    return nn.Parameter(data, requires_grad is True)


_SCALARS = (str, int, float, bool, bytes, type(None))


def _is_key(value: Any) -> bool:
    """Whether it is a scalar or a tuple of scalars, which are quick to hash."""
    values = value if type(value) is tuple else (value,)
    return all(type(each) in _SCALARS for each in values)


def _call_with(function: Any, *kinds: type) -> Any:
    """Restricts a function to arguments of some kinds; lists may hold only scalars."""

    def call(*args: Any) -> Any:
        known = all(
            type(arg) in kinds and (type(arg) is not list or all(map(_is_key, arg))) for arg in args
        )
        require(known, f'{function.__name__} of something else')
        return function(*args)

    return call


def _size(numbers: Any) -> torch.Size:
    require(are_sizes(numbers), 'a crafted torch.Size')
    return torch.Size(numbers)


def _encode(text: Any, encoding: Any) -> bytes:
    """Pickles of protocol 2 hold bytes this way."""
    known = type(text) is str and type(encoding) is str and encoding == 'latin1'
    require(known, 'bytes in another encoding')
    return text.encode('latin1')


_STORAGES = {
    **dict(Float=torch.float32, Double=torch.float64, Half=torch.float16, BFloat16=torch.bfloat16),
    **dict(Byte=torch.uint8, Char=torch.int8, Short=torch.int16, Int=torch.int32),
    **dict(Long=torch.int64, Bool=torch.bool),
    **dict(ComplexFloat=torch.complex64, ComplexDouble=torch.complex128),
}
_NUMBERS = re.compile(r'torch\.(bfloat16|bool|complex\d+|float(8_\w+|\d+)|u?int(8|16|32|64))')
_ALLOWED = {
    **STAND_INS,
    **{str(value): value for value in vars(torch).values() if _NUMBERS.fullmatch(str(value))},
    **{f'torch.{name}Storage': dtype for name, dtype in _STORAGES.items()},
    'torch.storage.UntypedStorage': torch.uint8,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _tensor,
    'torch._utils._rebuild_tensor': _tensor,  # torch 0.3
    'torch._utils._rebuild_parameter': _parameter,
    'torch.nn.parameter.Parameter': _parameter,
    'torch.Size': _size,
    'torch.device': _call_with(torch.device, str, int),
    'collections.OrderedDict': _call_with(OrderedDict),
    'collections.Counter': _call_with(Counter, dict),  # milestones of mmengine's schedules
    'builtins.set': _call_with(set, list),
    'builtins.complex': _call_with(complex, float),
    'builtins.bytes': _call_with(bytes),
    '_codecs.encode': _encode,
}
# The instructions of protocol 2, which torch writes, and those for bytes of protocol 3.
_INSTRUCTIONS = (
    *('STOP', 'MARK', 'NONE', 'NEWTRUE', 'NEWFALSE', 'BININT', 'BININT1', 'BININT2'),
    *('LONG1', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINSTRING', 'BINBYTES', 'SHORT_BINBYTES'),
    *('EMPTY_DICT', 'EMPTY_LIST', 'EMPTY_TUPLE', 'TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3'),
    *('BINPUT', 'LONG_BINPUT', 'BINGET', 'LONG_BINGET', 'GLOBAL', 'BINPERSID'),
)


class _Unpickler(pickle._Unpickler):  # pure Python: its instructions can be replaced
    """Builds only plain values, tensors and stand-ins."""

    def __init__(self, file: BinaryIO, load_storage: Any) -> None:
        super().__init__(file, encoding='utf-8')
        self.load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        name = f'{"builtins" if module == "__builtin__" else module}.{name}'
        require(name in _ALLOWED, name)
        return _ALLOWED[name]

    def persistent_load(self, pid: Any) -> _Storage:
        require(type(pid) is tuple and 5 <= len(pid) <= 6, 'a crafted storage')
        kind, dtype, key, _, length = pid[:5]
        require(type(kind) is type(key) is str and kind == 'storage', 'a crafted storage')
        require(type(dtype) is torch.dtype and pid[5:] in ((), (None,)), 'a crafted storage')
        require(are_sizes((length,)), 'a crafted storage')
        return _Storage(self.load_storage(key, dtype, length))

    def load_proto(self) -> None:
        protocol = self.read(1)[0]
        require(protocol in (2, 3), f'a pickle of protocol {protocol}')

    def load_reduce(self) -> None:
        args = self.stack.pop()
        function = self.stack[-1]
        known = any(function is each for each in _ALLOWED.values())
        require(known and type(args) is tuple, 'a crafted call')
        self.stack[-1] = function(*args)

    def load_newobj(self) -> None:
        args = self.stack.pop()
        cls = self.stack[-1]
        require(args == () and cls in (StandInHistoryBuffer, StandInNamespace), 'a crafted object')
        self.stack[-1] = cls()

    def load_build(self) -> None:
        state = self.stack.pop()
        built = self.stack[-1]
        if type(built) is OrderedDict:  # a state dict with the versions of its modules
            known = type(state) is dict and list(state) == ['_metadata']
            require(known and type(state['_metadata']) is OrderedDict, 'a crafted state dict')
            built._metadata = state['_metadata']
        else:
            require(type(built) in BUILT, 'a state for something else')
            built.__setstate__(state)

    def load_append(self) -> None:
        self._extend([self.stack.pop()])

    def load_appends(self) -> None:
        self._extend(self.pop_mark())

    def load_setitem(self) -> None:
        value = self.stack.pop()
        self._update([self.stack.pop(), value])

    def load_setitems(self) -> None:
        self._update(self.pop_mark())

    def _extend(self, items: list) -> None:
        require(type(self.stack[-1]) is list, 'items for something other than a list')
        self.stack[-1].extend(items)

    def _update(self, items: list) -> None:
        known = type(self.stack[-1]) in (dict, OrderedDict, Counter)
        require(known and all(map(_is_key, items[::2])), 'a dict with keys of other kinds')
        self.stack[-1].update(zip(items[::2], items[1::2]))

    dispatch = {
        **{
            code[0]: pickle._Unpickler.dispatch[code[0]]
            for code in (getattr(pickle, name) for name in _INSTRUCTIONS)
        },
        **{pickle.PROTO[0]: load_proto},
        **{pickle.REDUCE[0]: load_reduce, pickle.NEWOBJ[0]: load_newobj},
        **{pickle.BUILD[0]: load_build, pickle.APPEND[0]: load_append},
        **{pickle.APPENDS[0]: load_appends, pickle.SETITEM[0]: load_setitem},
        **{pickle.SETITEMS[0]: load_setitems},
    }


def read_safely(path: Union[str, Path], values: bool = True) -> Any:
    """The contents of a file that ``torch.save`` wrote, on the CPU.

    Checksums are compared, except those of weights if the environment variable
    ``MMVANILLA_SKIP_CHECKSUMS`` is set, which saves time with very large files.

    Args:
        path: The file.
        values: Whether to read the numbers of its tensors; otherwise these are meta tensors. Files
            of torch < 1.6 are read whole.

    Raises:
        RefusedError: if it holds something that is not allowed; the message names it.
        Exception: any other, if it is truncated or not such a file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe never ends
        raise ValueError(f'{path} is not a file')
    with open(path, 'rb') as file:
        starts_as_zip = file.read(2) == b'PK'
        file.seek(0)
        size = path.stat().st_size
        return _read_zip(file, size, values) if starts_as_zip else _read_old(file, size)


def _read_zip(file: BinaryIO, size: int, values: bool) -> Any:
    kept: Dict[str, Tensor] = {}
    with zipfile.ZipFile(file) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        (data,) = (name for name in infos if name.endswith('/data.pkl'))
        folder = data[: -len('data.pkl')]
        require(f'{folder}constants.pkl' not in infos, 'a TorchScript program')
        require(len(infos) == len(archive.infolist()), 'two records of one name')
        stored = all(info.compress_type == zipfile.ZIP_STORED for info in infos.values())
        require(stored, 'a compressed record')
        require(sum(info.file_size for info in infos.values()) <= size, 'records that overlap')
        order = f'{folder}byteorder'
        if order in infos:
            same = archive.read(order) == sys.byteorder.encode()
            require(same, 'numbers in another byte order')

        def load_storage(key: str, dtype: torch.dtype, length: int) -> Tensor:
            if not values:
                return torch.empty(length, dtype=dtype, device='meta')
            if key not in kept:
                with archive.open(f'{folder}data/{key}') as record:
                    if os.environ.get('MMVANILLA_SKIP_CHECKSUMS'):
                        record._expected_crc = None  # else it compares the checksum
                    kept[key] = _numbers(bytearray(record.read()))
            numbers = kept[key].view(dtype)
            require(len(numbers) == length, 'a tensor of a different size than its record')
            return numbers

        return _Unpickler(io.BytesIO(archive.read(data)), load_storage).load()


def _read_old(file: BinaryIO, size: int) -> Any:
    """A file of torch < 1.6: five pickles, then the storages in the order of the fifth pickle."""
    storages: Dict[str, Tensor] = {}
    left = size

    def load_storage(key: str, dtype: torch.dtype, length: int) -> Tensor:
        nonlocal left
        if key not in storages:
            left -= length * torch.empty(0, dtype=dtype).element_size()
            if left < 0:
                raise EOFError
            storages[key] = torch.zeros(length, dtype=dtype)
        known = storages[key].dtype == dtype and len(storages[key]) == length
        require(known, 'a crafted storage')
        return storages[key]

    magic, version, system, content, keys = (
        _Unpickler(file, load_storage).load() for _ in range(5)
    )
    known = type(magic) is int and magic == torch.serialization.MAGIC_NUMBER
    require(known and type(system) is dict and type(version) is int, 'a plain pickle')
    same = system.get('little_endian') is (sys.byteorder == 'little')
    require(same, 'numbers in another byte order')
    require(type(keys) is list and set(keys) == storages.keys(), 'a crafted storage')
    for key in keys:
        (length,) = struct.unpack('<q', file.read(8))
        numbers = storages[key]
        require(length == len(numbers), 'a crafted storage')
        record = file.read(numbers.numel() * numbers.element_size())
        numbers.copy_(_numbers(bytearray(record)).view(numbers.dtype))
    return content


def _numbers(record: bytearray) -> Tensor:
    if not record:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(record, dtype=torch.uint8)
