"""One sentence about an error of another package, found in its traceback.

Nothing here runs unless a program fails. Errors in modules of the user's own keep their tracebacks.
"""

import errno
import inspect
import re
import sysconfig
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional

from mmengine.config import DictAction
from mmengine.dataset import BaseDataset
from mmengine.registry import Registry, build_from_cfg
from torch import nn

from ..arguments import accepted_names, nearest, unknown_names
from ..coco_annotations import explain_classes, read_annotations
from ..errors import UsageError, first_line, reason

PACKAGES = ('mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'mmseg', 'torch', 'torchvision', 'mmvanilla')
READING = ('full_init', 'load_data_list', 'parse_data_info', 'filter_data', '_serialize_data')
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OTHER_SHAPE = re.compile(r'expected input|shapes cannot be multiplied')
WORKER = re.compile(r'DataLoader worker .* (exited unexpectedly|killed by signal)')
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|Unable to allocate", re.I)


def explain(error: BaseException) -> Optional[str]:
    """What went wrong in one sentence, if it is known; None for errors in a user's own code."""
    if isinstance(error, UsageError):
        # Older versions of mmengine's registry wrap errors in another of their type.
        while isinstance(error.__context__, UsageError) and not error.__suppress_context__:
            error = error.__context__
        return _from_process(str(error))
    errors = list(chain(error))
    frames = [frame for each in errors for frame, _ in traceback.walk_tb(each.__traceback__)]
    explainers: List[Callable[[BaseException, List[Any]], Optional[str]]] = [
        _explain_options,
        _explain_machine,
        _explain_data,
        _explain_part,
        _explain_layer,
        _explain_rest,
    ]
    for explainer in explainers:
        with suppress(Exception):  # what it looks for may be otherwise in another version
            sentence = explainer(errors[0], frames)
            if sentence:
                return ' '.join(sentence.split())
    return None


def chain(error: BaseException) -> Iterator[BaseException]:
    """The errors that led to this one, the first of them first."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from chain(before)
    yield error


def _from_process(message: str) -> str:
    """The message itself of an error that a data loader's process met."""
    found = re.search(r'UsageError: (.*?)\s*\Z', message, re.S)
    return found[1] if found and message.startswith('Caught ') else message


def _explain_options(error: BaseException, frames: List[Any]) -> Optional[str]:
    in_options = any(isinstance(frame.f_locals.get('self'), DictAction) for frame in frames)
    return '--cfg-options takes key=value, without spaces around "=".' if in_options else None


def _explain_machine(error: BaseException, frames: List[Any]) -> Optional[str]:
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(first_line(error)):
        return (
            f'there is not enough memory ({reason(error)}): use a smaller batch_size, smaller '
            'images, fewer num_workers, or with_cp=True in the backbone.'
        )
    if WORKER.search(first_line(error)):
        return (
            f'a process that loads data has ended ({first_line(error)}), perhaps for lack of '
            'memory: use fewer num_workers.'
        )
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f'{error.filename or "a file"} cannot be written ({error.strerror}): make room.'
    if isinstance(error, PermissionError):
        return f'there is no permission for {error.filename}: change it, or name another place.'
    return None


def _explain_data(error: BaseException, frames: List[Any]) -> Optional[str]:
    """Explains errors in reading a data set's annotations."""
    reading = [
        frame.f_locals['self']
        for frame in frames
        if isinstance(frame.f_locals.get('self'), BaseDataset) and frame.f_code.co_name in READING
    ]
    if not reading or not _is_known(type(reading[-1])):
        return None
    dataset = reading[-1]
    path = dataset.__dict__.get('ann_file') or dataset.__dict__.get('data_root')
    classes = (dataset.__dict__.get('_metainfo') or {}).get('classes')
    if str(path).endswith('.json'):
        try:
            read_annotations(path)
        except UsageError as fault:
            return str(fault)
    if isinstance(classes, (list, tuple)) and 'concatenate' in str(error):
        return explain_classes(path, classes)
    kind = type(dataset).__name__
    return f'{path} is not as it should be: {kind} cannot read it ({reason(error)}).'


def _explain_part(error: BaseException, frames: List[Any]) -> Optional[str]:
    """Explains errors in building a part of the config."""
    builders = [frame for frame in frames if frame.f_code is build_from_cfg.__code__]
    if not builders:
        return None
    names = builders[-1].f_locals
    part, made = names['cfg'], names.get('obj_cls')
    if not isinstance(part, dict):
        return f'a part of the config must be a dict with a type, got {part!r}.'
    kind = part.get('type')
    if kind is None:
        return f'a part of the config has no type: {_short(part)}.'
    if made is None:
        return unknown_type(kind, names['registry'])
    if not _is_known(made):
        return None
    known = accepted_names(made.__mro__ if inspect.isclass(made) else [made])
    unknown = [name for name in names['args'] if known is not None and name not in known]
    title = getattr(made, '__name__', str(kind))
    if unknown:
        return unknown_names(unknown, known, title)
    missing = re.search(r'missing \d+ required .*?arguments?: (.*)', str(error))
    if missing:
        return f'{title} needs {missing[1]}: {_short(part)} does not give it.'
    return f'{title} cannot be built from {_short(part)}: {reason(error)}.'


def unknown_type(kind: Any, registry: Registry) -> str:
    """The sentence about a type that a registry does not know."""
    known = {name: name for name in registry.root.module_dict}
    for each in registry.root.children.values():
        known.update((name, f'{each.scope}.{name}') for name in each.module_dict)
    known.update((name, name) for name in registry.module_dict if name not in known)
    near = nearest(str(kind).rpartition('.')[2], known)
    mend = (
        f'did you mean {known[near]!r}?'
        if near
        else "a class of your own needs custom_imports=dict(imports=['its_module'])."
    )
    return f'type={kind!r} is not among the {registry.name}s that are known: {mend}'


def _explain_layer(error: BaseException, frames: List[Any]) -> Optional[str]:
    """Explains a layer of torch that gets features of other channels than it takes."""
    if not isinstance(error, RuntimeError) or not OTHER_SHAPE.search(str(error)):
        return None
    owner, takes, gets = 'the model', 0, 0
    for frame in frames:
        names = frame.f_locals
        layer, x = names.get('self', names.get('conv')), names.get('input', names.get('x'))
        if isinstance(layer, nn.Conv2d) and getattr(x, 'ndim', 0) == 4:
            takes, gets = layer.in_channels, x.shape[1]
        elif isinstance(layer, nn.Linear) and getattr(x, 'ndim', 0) > 1:
            takes, gets = layer.in_features, x.shape[-1]
        elif isinstance(layer, nn.Module) and not type(layer).__module__.startswith('torch.'):
            owner = type(layer).__name__
    if takes == gets:
        return None
    return (
        f'a layer of {owner} takes {takes} channels, but gets {gets}: set in_channels and '
        'out_channels of the parts of the model so that each takes what the one before returns.'
    )


def _explain_rest(error: BaseException, frames: List[Any]) -> Optional[str]:
    """Names the place of another error in known packages, if nothing of the user's was called."""
    names = [frame.f_globals.get('__name__', '') for frame in frames]
    files = [frame.f_code.co_filename for frame in frames]
    own = [f for n, f in zip(names, files) if not (_is_library(f) or n == '__main__')]
    top = [name.split('.')[0] for name in names]
    if not frames or own or top[-1] == 'mmvanilla' or not {*top} & {*PACKAGES[:-1]}:
        return None
    place = next(name for name in reversed(names) if name.split('.')[0] in PACKAGES)
    return (
        f'{place} failed with {reason(error)}: the config or the data are not as it expects '
        '(MMVANILLA_TRACEBACK=1 in the environment shows where).'
    )


def _is_library(file: str) -> bool:
    """Whether a file is Python's, an installed package's, or ours."""
    places = (sysconfig.get_paths()['stdlib'], str(Path(__file__).parents[1]))
    return 'site-packages' in file or file.startswith(('<', *places))


def _is_known(made: Any) -> bool:
    return (getattr(made, '__module__', None) or '').split('.')[0] in PACKAGES


def _short(part: Any) -> str:
    plain = (str, int, float, bool, list, tuple, dict, type(None))
    items = ((key, value) for key, value in part.items() if isinstance(value, plain))
    text = ', '.join(f'{key}={value!r}' for key, value in items)
    return f'dict({text[:150]}{"..." if len(text) > 150 else ""})'
