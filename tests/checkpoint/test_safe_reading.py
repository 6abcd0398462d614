"""Harmful checkpoint files are refused, and do nothing."""

import argparse
import builtins
import fcntl
import io
import os
import pickle
import pickletools
import struct
import sys
import tarfile
import warnings
import zipfile
from collections import Counter, OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
from helpers.programs import ROOT, run_python
from helpers.versions import torch_has
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleLR

from mmvanilla import UsageError
from mmvanilla.checkpoint import load_checkpoint, replace_when_whole, writing
from mmvanilla.checkpoint.safe_reading import read_safely
from mmvanilla.cli.config_in_checkpoint import config_in_checkpoint
from mmvanilla.models.loading.weights import read_state_dict
from mmvanilla.supported_versions import installed_version

# Pickle instructions, which the functions below combine as an attacker would.
HISTORY_BUFFER = b'cmmengine.logging.history_buffer\nHistoryBuffer\n'
ONE_CYCLE = b'cmmengine.optim.scheduler.param_scheduler\nOneCycleParamScheduler\n'
NDARRAY, DTYPE = b'cnumpy\nndarray\n', b'cnumpy\ndtype\n'
RECONSTRUCT = b'cnumpy.core.multiarray\n_reconstruct\n'
SCALAR = b'cnumpy.core.multiarray\nscalar\n'
ORDERED_DICT = b'ccollections\nOrderedDict\n'
TENSOR = b'ctorch._utils\n_rebuild_tensor_v2\n'
# Before torch 2.6, torch.load cannot read what mmengine writes without running code from it; the
# fork reads by means of its own.
READERS = [load_checkpoint]
if torch_has('2.6') and not installed_version('onedl-mmengine'):
    READERS.append(partial(torch.load, weights_only=True))


def dump(value):
    """The instructions that build a value."""
    return pickle.dumps(value, 2)[2:-1]


def call(function, *arguments):
    return function + b'(' + b''.join(arguments) + b'tR'


def build(made, state):
    return made + state + b'b'


def new(cls, *arguments):
    return cls + b'(' + b''.join(arguments) + b't\x81'


def dtype(code, order='<', *, state=None):
    made = call(DTYPE, dump(code), dump(False), dump(True))
    return build(made, dump(state or (3, order, None, None, None, -1, -1, 0)))


def array(dtype, raw, shape=(1,), version=1):
    made = call(RECONSTRUCT, NDARRAY, dump((0,)), dump(b'b'))
    state = b'(' + dump(version) + dump(shape) + dtype + dump(False) + raw + b't'
    return build(made, state)


def storage(kind, length, key='0'):
    return b'(' + dump('storage') + kind + dump(key) + dump('cpu') + dump(length) + b'tQ'


def tensor(length=4, offset=0, size=(4,), stride=(1,), kind=b'ctorch\nFloatStorage\n'):
    rest = dump(offset) + dump(size) + dump(stride) + dump(False) + call(ORDERED_DICT)
    return call(TENSOR, storage(kind, length) + rest)


def history(log=None, **others):
    log = array(dtype('f8'), dump(bytes(8))) if log is None else log
    state = b'}(' + dump('max_length') + dump(10) + dump('_log_history') + log
    state += dump('_count_history') + array(dtype('i8'), dump(struct.pack('<q', 1)))
    for name, value in others.items():
        state += dump(name) + value
    return build(new(HISTORY_BUFFER), state + b'u')


def statistic(name):
    return call(b'cbuiltins\ngetattr\n', HISTORY_BUFFER, dump(name))


def statistics(name, value):
    return history(statistics_methods=b'}' + dump(name) + value + b's')


# A tuple of 2 ** 40 elements, in a few bytes: code that visits all of them never ends.
BOMB = b')q\x00' + b'h\x00h\x00\x86q\x00' * 40
RUN = dump('touch ' + 'PLACE' * 8)
POINTER = dump(struct.pack('<Q', 0x4141414141414141))
OBJECT_STATE = (3, '|', None, None, None, -1, -1, 63)
MALICIOUS = {
    'a call': call(b'cos\nsystem\n', RUN),
    'a call of a built-in': call(b'cbuiltins\neval\n', dump("__import__('os').abort()")),
    'a call by INST': b'(' + RUN + b'ios\nsystem\n',
    'a call by OBJ': b'(cos\nsystem\n' + RUN + b'o',
    'a call by an extension': b'\x82\x01',
    'a class by NEWOBJ': new(b'csubprocess\nPopen\n', RUN),
    'a class by NEWOBJ_EX': b'csubprocess\nPopen\n(' + RUN + b't}\x92',
    'a name of protocol 4': dump('os') + dump('system') + b'\x93' + RUN + b'\x85R',
    'a chain of getattr': call(
        b'cbuiltins\ngetattr\n',
        call(b'cbuiltins\ngetattr\n', HISTORY_BUFFER, dump('__init__')),
        dump('__globals__'),
    ),
    'getattr of something else': call(b'cbuiltins\ngetattr\n', DTYPE, dump('mean')),
    'a method of the class': call(b'cbuiltins\ngetattr\n', HISTORY_BUFFER, dump('update')),
    'numpy loading pickles': call(b'cnumpy\nload\n', dump('a.npy')),
    'an array of objects': array(dtype('O8', '|'), b']' + RUN + b'a'),
    'an object dtype by its state': array(dtype('f8', state=OBJECT_STATE), POINTER),
    'a scalar that is an object': call(SCALAR, dtype('f8', state=OBJECT_STATE), POINTER),
    'a dtype with fields': dtype('V8', '|'),
    'a dtype of other bytes': dtype('f8', '>'),
    'a dtype by NEWOBJ': new(DTYPE, dump('O')),
    'a dtype set twice': build(dtype('f8'), dump(OBJECT_STATE)),
    'an array by its constructor': call(NDARRAY, dump((1 << 16,))),
    'an array by NEWOBJ': new(NDARRAY, dump((1 << 16,)), dump('f8')),
    'an array of a class': call(RECONSTRUCT, ORDERED_DICT, dump((0,)), dump(b'b')),
    'an array longer than its bytes': array(dtype('f8'), dump(bytes(8)), (1 << 16,)),
    'an array of negative shape': array(dtype('f8'), dump(bytes(8)), (-1, -1)),
    'an array of another version': array(dtype('f8'), dump(bytes(8)), version=2),
    'an array set twice': build(
        array(dtype('f8'), dump(bytes(8))), dump((1, (1,), None, False, bytes(8)))
    ),
    'a scalar longer than its bytes': call(SCALAR, dtype('f8'), dump(b'')),
    'a scalar of a string': call(SCALAR, dump('f8'), dump(bytes(8))),
    'a HistoryBuffer with a statistic of its own': statistics('mean', dump('min')),
    'a HistoryBuffer with another statistic': statistics('median', statistic('mean')),
    'a HistoryBuffer with other logs': history(dump([1.0])),
    'a HistoryBuffer with more': history(_statistics_methods=dump({})),
    'a HistoryBuffer by its constructor': call(HISTORY_BUFFER, dump([1.0]), dump([1])),
    'a state for a class': build(HISTORY_BUFFER, dump((None, {'mean': None}))),
    'a state for a function': build(TENSOR, dump((None, {'__kwdefaults__': {}}))),
    'a state for an array class': build(NDARRAY, dump((None, {'x': 1}))),
    'a state for a tensor': build(tensor(), dump((None, {'data': 1}))),
    'an endless code of a dtype': call(DTYPE, BOMB),
    'an endless state of a dtype': build(call(DTYPE, dump('f8'), dump(False), dump(True)), BOMB),
    'an endless name for getattr': call(b'cbuiltins\ngetattr\n', HISTORY_BUFFER, BOMB),
    'an endless statistic': statistics('mean', BOMB),
    'an endless product': array(dtype('f8'), dump(bytes(8)), (255**100,) * 20000),
    'a version that is an array': build(
        call(RECONSTRUCT, NDARRAY, dump((0,)), dump(b'b')),
        b'(' + array(dtype('f8'), dump(bytes(8))) + dump((1,)) + dtype('f8') + dump(0) + b')t',
    ),
}
MALICIOUS_TENSORS = {
    'more numbers than its record': tensor(1 << 16, size=(1 << 16,)),
    'a size beyond its record': tensor(size=(1 << 16,)),
    'a stride beyond its record': tensor(size=(2,), stride=(1 << 40,)),
    'a negative stride': tensor(offset=3, size=(2,), stride=(-1,)),
    'a negative offset': tensor(offset=-2, size=(1,)),
    'an offset beyond its record': tensor(offset=4, size=(1,)),
    'another kind of number': tensor(kind=b'ctorch\nDoubleStorage\n'),
    'an endless key': b'}' + BOMB + b'Ns',
    'a deep key': b'})' + b'\x85' * 400000 + b'Ns',
    'an endless text': call(b'c_codecs\nencode\n', dump('a'), BOMB),
    'an endless name of a record': tensor().replace(dump('0'), BOMB),
    'a claimed array of bytes': b'\x96' + struct.pack('<Q', 3 << 30),
    'a set of an expanded tensor': call(b'cbuiltins\nset\n', tensor(size=(1 << 24,), stride=(0,))),
    'a call with an expanded tensor': b'cbuiltins\nset\n' + tensor(size=(9,), stride=(0,)) + b'R',
    'a tensor for a dict': tensor() + dump(0) + dump(1) + b's',
    'a tensor for a list': tensor() + dump(0) + b'a',
    'a state dict with methods': build(call(ORDERED_DICT), dump({'get': 5})),
    'a storage by its constructor': call(b'ctorch\nFloatTensor\n', dump((20000,))),
    'text that draws on the terminal': b'cx\x1b]0;title\x07\ny\n',
    'no storage': call(TENSOR, dump([1, 2]) + dump(0) + dump((2,)) + dump((1,)) + dump(False)),
    'another file': tensor().replace(dump('0'), dump('../version')),
}


def write(path, instructions, **records):
    """Writes a file as torch does, with these instructions in ``data.pkl`` and one record."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', b'\x80\x02}' + dump('meta') + instructions + b's.')
        archive.writestr('archive/byteorder', sys.byteorder)
        archive.writestr('archive/data/0', np.arange(4, dtype=np.float32).tobytes())
        archive.writestr('archive/version', '3\n')
        for name, content in records.items():
            archive.writestr(f'archive/{name}', content)
    return path


def with_place(instructions, place):
    """Puts ``place`` into instructions without changing their length."""
    return instructions.replace(b'PLACE' * 8, str(place).encode().ljust(40)[-40:])


@pytest.fixture
def place():
    path = f'/tmp/mmvanilla-{os.getpid()}-ran'
    yield path
    assert not os.path.exists(path)


READ = """
import sys
import torch
import mmvanilla
from mmvanilla.checkpoint import load_checkpoint
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleLR
before = dict(vars(HistoryBuffer)), dict(HistoryBuffer._statistics_methods)
for path in sys.argv[2:]:
    try:
        if sys.argv[1] == 'torch':
            found = torch.load(path, weights_only=True)
        else:
            found = load_checkpoint(path)
    except Exception as error:
        message = str(error)
        assert sys.argv[1] == 'torch' or isinstance(error, mmvanilla.UsageError), repr(error)
        assert sys.argv[1] == 'torch' or message.isprintable() and path in message, message
    else:
        raise SystemExit(f'{path} was read: {found}')
assert before == (dict(vars(HistoryBuffer)), dict(HistoryBuffer._statistics_methods))
print('all refused')
"""


@pytest.mark.parametrize('reader', ['ours', 'torch'])
def test_malicious_files(reader, place, tmp_path):
    """Another process reads them, because some of them could crash it."""
    files = MALICIOUS if reader == 'torch' else {**MALICIOUS, **MALICIOUS_TENSORS}
    paths = [
        write(tmp_path / f'{name}.pth', with_place(instructions, place))
        for name, instructions in files.items()
    ]
    assert len(paths) > 30
    output = run_python('-c', READ, reader, *paths, timeout=120)
    assert output.endswith('all refused\n'), output


def test_each_would_be_read_if_it_were_harmless(tmp_path):
    """The files above are refused for the harm in them, not for how they are built."""
    harmless = {
        'array': (array(dtype('f8'), dump(struct.pack('<d', 3))), [3.0]),
        'scalar': (call(SCALAR, dtype('f8'), dump(struct.pack('<d', 3))), 3.0),
        'tensor': (tensor(), [0.0, 1.0, 2.0, 3.0]),
        'part': (tensor(offset=1, size=(2,), stride=(2,)), [1.0, 3.0]),
    }
    for name, (instructions, expected) in harmless.items():
        path = write(tmp_path / f'{name}.pth', instructions)
        assert load_checkpoint(path)['meta'].tolist() == expected
    path = write(tmp_path / 'history.pth', statistics('mean', statistic('mean')))
    for read in READERS:
        found = read(path)['meta']
        assert type(found) is HistoryBuffer and found.mean() == 0.0
        found.update(2.0)
        assert found.statistics('max') == 2.0
        assert type(found._log_history) is np.ndarray


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('tar', 'truncated'),
        ('pipe', 'truncated'),
        ('overlapping', 'records that overlap'),
        ('twice', 'two records of one name'),
        ('old, cut', 'truncated'),
        ('old, unfilled', 'crafted storage'),
        ('script', 'TorchScript'),
        ('compressed', 'compressed record'),
        ('swapped', 'another byte order'),
        ('damaged', 'is damaged .its checksums differ'),
        ('zip-like', 'truncated'),
        ('old', r'holds \w*\.system'),
    ],
)
def test_other_files(name, message, tmp_path):
    path = write(tmp_path / f'{name}.pth', tensor())
    content = path.read_bytes()
    if name == 'tar':
        with tarfile.open(path, 'w') as archive:
            archive.addfile(tarfile.TarInfo('../escaped'), io.BytesIO())
    elif name == 'script':
        torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))
    elif name == 'compressed':
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
            archive.writestr('archive/data.pkl', bytes(1 << 20))
    elif name == 'swapped':
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('archive/data.pkl', b'\x80\x02}.')
            archive.writestr('archive/byteorder', dict(little='big', big='little')[sys.byteorder])
    elif name == 'damaged':  # one bit of the numbers
        where = content.index(np.arange(4, dtype=np.float32).tobytes())
        path.write_bytes(content[:where] + b'\x01' + content[where + 1 :])
    elif name == 'pipe':
        path.unlink()
        os.mkfifo(path)
    elif name == 'twice':
        with warnings.catch_warnings(), zipfile.ZipFile(path, 'a') as archive:
            warnings.simplefilter('ignore')
            archive.writestr('archive/data/0', bytes(16))
    elif name == 'overlapping':  # the directory names the same bytes many times
        write(path, tensor(), big=bytes(10000))
        content = path.read_bytes()
        directory, end = content.index(b'PK\x01\x02'), content.index(b'PK\x05\x06')
        start = content.index(b'archive/big', directory) - 46
        entry = content[start : start + 46 + len('archive/big')]
        more = b''.join(entry.replace(b'/big', b'/%03d' % i) for i in range(200))
        entries, _, size, offset = struct.unpack('<HHII', content[end + 8 : end + 20])
        sizes = struct.pack('<HHII', entries + 200, entries + 200, size + len(more), offset)
        path.write_bytes(content[:end] + more + content[end : end + 8] + sizes + b'\0\0')
    elif name.startswith('old,'):
        torch.save(dict(a=torch.ones(10)), path, _use_new_zipfile_serialization=False)
        content = path.read_bytes()
        if name == 'old, cut':
            path.write_bytes(content[:-20])
        else:  # the list of storages with numbers is empty
            keys = content.rindex(b'\x80\x02]')
            path.write_bytes(content[:keys] + b'\x80\x02].')
    elif name == 'zip-like':
        path.write_bytes(content[:-22])
    else:

        class Payload:
            def __reduce__(self):
                return os.system, (f'touch {tmp_path}/escaped',)

        torch.save(dict(a=Payload()), path, _use_new_zipfile_serialization=False)
    with pytest.raises(UsageError, match=message):
        load_checkpoint(path)
    assert not (tmp_path / 'escaped').exists() and not (tmp_path.parent / 'escaped').exists()


def test_every_end_of_the_values_is_noticed(tmp_path):
    """Each byte in turn is replaced by the instruction to stop."""
    path = write(tmp_path / 'a.pth', dump(dict(a=[1.0, 'text'], b=(None, 5))))
    content = path.read_bytes()
    start = content.index(b'\x80\x02}')
    for i in range(start, content.index(b'PK', start)):
        if content[i : i + 1] != b'.':
            path.write_bytes(content[:i] + b'.' + content[i + 1 :])
            with pytest.raises(UsageError, match='is damaged'):
                load_checkpoint(path)


def everything():
    """Everything that training checkpoints hold."""
    shared = torch.arange(6.0)
    return dict(
        tensors=[
            torch.randn(2, 3).to(getattr(torch, name))
            for name in ('float64', 'float32', 'float16', 'bfloat16', 'complex64', 'int64', 'int32')
        ],
        others=[
            torch.tensor([True, False]),
            torch.empty(0, 3),
            torch.tensor(5),
            shared,
            shared[::2],
        ],
        transposed=torch.randn(3, 4).t(),
        channels_last=torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        parameter=torch.nn.Parameter(torch.ones(2)),
        with_grad=torch.ones(2, requires_grad=True),
        float8=[torch.ones(3).to(torch.float8_e4m3fn)] if torch_has('2.2') else [],
        logs=HistoryBuffer([1.0, 2.0, 6.0], [1, 1, 1]),
        scalars=[np.float32(0.5), np.float64(0.25), np.int64(3), np.bool_(True), np.uint8(7)],
        arrays=[np.arange(6.0).reshape(2, 3), np.asfortranarray(np.eye(3)[:2]), np.zeros((0, 2))],
        milestones=Counter([3, 3, 5]),
        keys={1: 2, (1, 'a'): 3, None: 4, 'set': {(1, 2)}},
        plain=dict(a=(1, 'ü', None, b'x', 2.5, {1, 2}, 1j, True, 10**30), dtype=torch.float32),
        device=torch.device('cpu'),
        size=torch.Size([1, 2]),
        options=argparse.Namespace(lr=0.1),
    )


def assert_same(got, expected):
    if isinstance(expected, HistoryBuffer):
        assert type(got) is HistoryBuffer
        assert got.max_length == expected.max_length
        assert_same(got.data, expected.data)
    elif isinstance(expected, torch.Tensor):
        assert type(got) is type(expected) and got.dtype == expected.dtype
        assert got.stride() == expected.stride() and got.requires_grad == expected.requires_grad
        assert got.tolist() == expected.tolist()
    elif isinstance(expected, (np.ndarray, np.generic)):
        assert got.dtype == expected.dtype and np.array_equal(got, expected)
    elif isinstance(expected, dict):
        assert type(got) is type(expected) and got.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(got[key], value)
    elif isinstance(expected, (list, tuple)) and type(expected) is not torch.Size:
        assert type(got) is type(expected) and len(got) == len(expected)
        for one, other in zip(got, expected):
            assert_same(one, other)
    else:
        assert type(got) is type(expected) and got == expected


def test_everything_that_training_writes(tmp_path):
    expected = everything()
    torch.save(expected, tmp_path / 'a.pth')
    loaded = load_checkpoint(tmp_path / 'a.pth')
    assert_same(loaded, expected)
    assert loaded['others'][3].data_ptr() == loaded['others'][4].data_ptr()
    # Saving it again keeps the original types, for readers without mmvanilla.
    torch.save(loaded, tmp_path / 'b.pth')
    assert_same(load_checkpoint(tmp_path / 'b.pth'), expected)
    names = pickle_names(tmp_path / 'b.pth')
    assert not any('mmvanilla' in name for name in names)


def pickle_names(path):
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith('data.pkl'))
        instructions = pickletools.genops(archive.read(name))
        return {arg for opcode, arg, _ in instructions if opcode.name == 'GLOBAL'}


def test_a_run_with_functions_in_its_schedule(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(1))
    schedule = OneCycleLR(torch.optim.SGD([parameter], lr=0.1), eta_max=0.1, total_steps=5)
    torch.save(dict(param_schedulers=[schedule.state_dict()]), tmp_path / 'a.pth')
    path = tmp_path / 'a.pth'
    for read in READERS:
        (state,) = read(path)['param_schedulers']
        assert state['anneal_func'] is OneCycleLR._annealing_cos
        schedule.load_state_dict(state)
    call_of_it = call(
        call(b'cbuiltins\ngetattr\n', ONE_CYCLE, dump('_annealing_cos')), dump(0), dump(1), dump(1)
    )
    with pytest.raises(UsageError, match='crafted call'):
        load_checkpoint(write(tmp_path / 'b.pth', call_of_it))


@pytest.mark.parametrize('kind', ['tensor', 'parameter'])
def test_files_of_the_first_torch(kind, tmp_path):
    stored = b'(' + dump('storage') + b'ctorch\nFloatStorage\n' + dump('0') + dump('cpu')
    stored += dump(4) + b'NtQ'
    value = (
        b'ctorch._utils\n_rebuild_tensor\n(' + stored + dump(0) + dump((4,)) + dump((1,)) + b'tR'
    )
    if kind == 'parameter':
        value = call(b'ctorch.nn.parameter\nParameter\n', value, dump(True))
    system = dump(dict(protocol_version=1001, little_endian=True, type_sizes={}))
    numbers = np.arange(4, dtype=np.float32)
    pickles = (dump(0x1950A86A20F9469CFC6C), dump(1001), system, value, dump(['0']))
    content = b''.join(b'\x80\x02' + each + b'.' for each in pickles)
    path = tmp_path / 'a.pth'
    path.write_bytes(content + struct.pack('<q', 4) + numbers.tobytes())
    with pytest.raises(UsageError, match='holds a (Tensor|Parameter), not a dict'):
        load_checkpoint(path)
    assert read_safely(path).tolist() == [0.0, 1.0, 2.0, 3.0]


def test_another_protocol_is_named(tmp_path):
    torch.save(dict(a=torch.ones(1)), tmp_path / 'a.pth', pickle_protocol=4)
    with pytest.raises(UsageError, match='holds a pickle of protocol 4'):
        load_checkpoint(tmp_path / 'a.pth')


def test_keys_that_are_no_names(tmp_path):
    torch.save({1: torch.ones(1)}, tmp_path / 'a.pth')
    with pytest.raises(UsageError, match='its keys are not names'):
        read_state_dict(str(tmp_path / 'a.pth'))


def test_versions_of_a_state_dict(tmp_path):
    weights = torch.nn.BatchNorm2d(3).state_dict()
    torch.save(weights, tmp_path / 'a.pth')
    loaded = load_checkpoint(tmp_path / 'a.pth')
    assert isinstance(loaded, OrderedDict) and loaded._metadata[''] == dict(version=2)


DETECTOR = "dict(type='RetinaNet', backbone=dict(type='{}', {}))"
FILE, ADDRESS = 'photos_neighbour.py', 'http://127.0.0.1:9/x.pkl'
# full-width characters, which Python reads as plain ones
ASSIGNING = r'[os for os._\uff3fgetitem\uff3f_ in [os.system]]'


def model(**settings):
    return f"default_scope = 'mmdet'\nmodel = {dict(dict(type='RetinaNet'), **settings)!r}"


def step(**settings):
    dataset = dict(type='CocoDataset', pipeline=[settings])
    return model() + f'\ntest_dataloader = {dict(dataset=dataset)!r}'


@pytest.mark.parametrize(
    ('text', 'named'),
    [
        ("model = dict(type='subprocess.getoutput', cmd='touch {place}')", 'subprocess.getoutput'),
        (model(backbone=dict(type='os.path.join')), 'os.path.join'),
        (model(backbone=dict(type='antigravity')), 'antigravity'),
        (model(backbone=dict(type='photos_neighbour')), 'photos_neighbour'),
        (model(backbone=dict(type='mmengine.Config.fromfile')), 'mmengine.Config.fromfile'),
        (model(backbone=dict(type='mmengine.dump')), 'mmengine.dump'),
        (model(backbone=dict(type='torch.hub.load')), 'torch.hub.load'),
        (model(backbone=dict(type='mmengine.CheckpointHook')), 'mmengine.CheckpointHook'),
        (model(backbone=dict(type='VanillaNet', norm_layer='photos_neighbour')), 'neighbour'),
        (model(_scope_='photos_neighbour'), 'photos_neighbour'),
        ("default_scope = 'photos_neighbour'\nmodel = dict(type='RetinaNet')", 'photos_neighbour'),
        (model(test_cfg=dict(nms=dict(type='exit()'))), 'exit'),
        (model(test_cfg=dict(nms=dict(type='exit'))), 'exit'),
        (model(warp_mode='exit()'), 'exit'),
        (model(warp_mode=ASSIGNING), 'os for os'),
        (model(warp_mode='cv2.os.system'), 'cv2.os.system'),
        (model(teacher_config=FILE), FILE),
        (model(teacher_config='/tmp/photos_neighbour'), '/tmp/photos_neighbour'),
        (model(bbox_head=dict(type='RetinaHead', class_weight=ADDRESS)), 'http'),
        (model(bbox_head=dict(type='mmpretrain.AutoTokenizer')), 'AutoTokenizer'),
        (model(bbox_head=dict(type='mmseg.CrossEntropyLoss', class_weight='pkl')), 'pkl'),
        (model(type='mmpretrain.HuggingFaceClassifier', model_name='evil'), 'model_name=evil'),
        (
            model(backbone=dict(type='mmpretrain.VisionTransformer', trust_remote_code=True)),
            'remote',
        ),
        (model(backbone=dict(type='mmdet.BertModel', name='gpt2')), 'name=gpt2'),
        (model(backbone=dict(type='mmseg.VPD', class_embed_path='weights')), 'class_embed_path'),
        (model(teacher_config=dict(model=5)), 'teacher_config='),
        (model(teacher_ckpt='weights'), 'teacher_ckpt=weights'),
        (model(anything='pickle'), 'pickle'),  # there is a file of this name
        (step(type='mmpretrain.torchvision/ConvertImageDtype', dtype='exit()'), 'torchvision'),
        (step(type='Resize', scale='exit()'), 'exit'),
        (step(type='LoadImageFromFile', ignore=FILE), FILE),
        (model().replace("'RetinaNet'", 'exit()'), 'not a model in plain values'),
        ('import os\n' + model(), 'not a model in plain values'),
        ("model = {**exec('raise SystemExit')}", 'not a model in plain values'),
        ('model = ' + '(' * 5000 + ')' * 5000, 'not a model in plain values'),
        ('model = ' + '-' * 20000 + '1', 'not a model in plain values'),
        ("default_scope = 'mmdet'", 'not a model in plain values'),
        (5, 'holds no config'),
        ('model = 1' + '+1' * 300_000, 'holds no config'),
        (model(), 'has no test pipeline'),
        (model() + '\ntest_dataloader = None', 'has no test pipeline'),
        (
            model() + '\ntest_dataloader = dict(dataset=dict(pipeline=5))',
            'not a model in plain values',
        ),
        (model(backbone=dict(type=dict(a=1))), 'a'),
        (model(word='__main__'), '__main__'),
    ],
)
def test_configs_in_checkpoints_are_data(text, named, place, tmp_path, monkeypatch):
    if isinstance(text, str):
        text = text.replace('{place}', str(place))
    (tmp_path / FILE).write_text(f"open({str(place)!r}, 'w')\n")
    for name in ('pkl', 'pickle'):
        (tmp_path / name).write_bytes(b'')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match='evil.pth .*--config') as error:
        config_in_checkpoint(dict(meta=dict(cfg=text)), 'evil.pth')
    assert named in str(error.value) and str(error.value).isprintable()
    assert not {'antigravity', 'photos_neighbour'} & sys.modules.keys()


def test_what_is_not_needed_is_left_out():
    """Only the scope, the model and the test pipeline are read from a config."""
    pretrained = dict(type='Pretrained', checkpoint=FILE)
    text = model(backbone=dict(type='mmvanilla.VanillaNet', init_cfg=pretrained))
    text += f"""
custom_imports = dict(imports=['photos_neighbour'])
test_dataloader = dict(
    collate_fn='photos_neighbour',
    dataset=dict(type='mmengine.ConcatDataset', ann_file='{ADDRESS}', pipeline=[
        dict(type='LoadImageFromFile', backend_args=dict(backend='http'))]),
)
visualizer = dict(type='photos_neighbour')
"""
    cfg = config_in_checkpoint(dict(meta=dict(cfg=text)), 'a.pth')
    assert cfg.to_dict() == dict(
        default_scope='mmdet',
        model=dict(type='RetinaNet', backbone=dict(type='mmvanilla.VanillaNet')),
        test_dataloader=dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile')])),
    )


@pytest.mark.parametrize('config', sorted((ROOT / 'configs').glob('*.py')), ids=lambda p: p.stem)
def test_own_configs_are_taken(config):
    cfg = Config.fromfile(config)
    found = config_in_checkpoint(dict(meta=dict(cfg=cfg.pretty_text)), 'a.pth')
    assert found.model.backbone.type == cfg.model.backbone.type
    assert len(found.test_dataloader.dataset.pipeline) == len(cfg.test_dataloader.dataset.pipeline)


def test_planted_links_are_not_followed(tmp_path):
    target = tmp_path / 'target'
    target.write_text('kept')
    (tmp_path / 'a.pth.tmp').symlink_to(target)
    with replace_when_whole(tmp_path / 'a.pth') as first:
        with replace_when_whole(tmp_path / 'a.pth') as second:
            assert first != second
            second.write_text('second')
        first.write_text('first')
    assert (tmp_path / 'a.pth').read_text() == 'first' and target.read_text() == 'kept'
    assert sorted(os.listdir(tmp_path)) == ['a.pth', 'a.pth.tmp', 'target']


@pytest.mark.parametrize('locks', [True, False])
def test_what_windows_refuses(locks, tmp_path, monkeypatch):
    """It flushes only files that are open for writing, and renames only files that are closed."""
    renamed, fsync, replace = [], os.fsync, os.replace

    def flush(number):
        assert fcntl.fcntl(number, fcntl.F_GETFL) & (os.O_WRONLY | os.O_RDWR)
        fsync(number)

    def rename(source, target):
        names = [os.path.realpath(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')]
        renamed.append(str(source) in names)
        replace(source, target)

    monkeypatch.setattr(os, 'fsync', flush)
    monkeypatch.setattr(os, 'replace', rename)
    if not locks:  # there are none on Windows
        monkeypatch.setattr(writing, 'fcntl', None)
    with replace_when_whole(tmp_path / 'a') as temporary:
        temporary.write_text('x')
    assert (tmp_path / 'a').read_text() == 'x'
    assert renamed == [locks]  # with locks it stays open until it has its name


KILLED = """
import os
import signal
import sys
from mmvanilla.checkpoint import replace_when_whole
with replace_when_whole(sys.argv[1]) as temporary:
    temporary.write_text('half')
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_leftovers_of_a_killed_writer(tmp_path):
    result = run_python('-c', KILLED, tmp_path / 'epoch_1.pth', check=False)
    assert result.returncode == -9
    (leftover,) = os.listdir(tmp_path)
    assert leftover.startswith('epoch_1.pth.') and leftover.endswith('.tmp')
    with replace_when_whole(tmp_path / 'epoch_2.pth') as temporary:
        temporary.write_text('whole')
    assert os.listdir(tmp_path) == ['epoch_2.pth']


def test_permissions_are_those_of_any_file(tmp_path):
    with replace_when_whole(tmp_path / 'a') as temporary:
        temporary.write_text('x')
    with builtins.open(tmp_path / 'b', 'w'):
        pass
    assert (tmp_path / 'a').stat().st_mode == (tmp_path / 'b').stat().st_mode
