"""Files of annotations in COCO's format: what is wrong with them, and what their boxes are."""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple, Union

from .errors import UsageError, first_line


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max  # neither nan nor 10**400


def _is_size(value: Any) -> bool:
    return _is_number(value) and value >= 1


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str))


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


# What mmdet reads of a file, and the form that it has.
COCO: Dict[str, Dict[str, Callable[[Any], bool]]] = dict(
    images=dict(
        id=_is_id,
        file_name=lambda value: isinstance(value, str) and value != '',
        height=_is_size,
        width=_is_size,
    ),
    annotations=dict(image_id=_is_id, category_id=_is_id, bbox=_is_box, area=_is_number),
    categories=dict(id=_is_id, name=lambda value: isinstance(value, str)),
)
# What need not be there
OPTIONAL: Dict[str, Callable[[Any], bool]] = dict(id=_is_id, iscrowd=lambda value: value in (0, 1))


def read_annotations(path: Union[str, Path]) -> Dict[str, Any]:
    """The content of a file of annotations.

    Raises:
        UsageError: if it cannot be read, or is not in COCO's format.
    """
    if not Path(path).is_file():
        raise UsageError(f'{path} does not exist: put the annotations there, or name their file.')
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        raise UsageError(f'{path} cannot be read: {error.strerror}.') from None
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError
        raise _wrong(path, f'it is no JSON file ({first_line(error)})') from None
    fault = _find_fault(content)
    if fault:
        raise _wrong(path, fault)
    return content


def _wrong(path: Union[str, Path], fault: str) -> UsageError:
    return UsageError(f'{path} is not as it should be: {fault}.')


def _find_fault(content: Any) -> Optional[str]:
    if not isinstance(content, dict):
        return f'it holds a {type(content).__name__}, but COCO has a dict'
    for kind, keys in COCO.items():
        if not isinstance(content.get(kind), list):
            return f'it has no list of {kind}'
        read = {**OPTIONAL, **keys}
        for i, item in enumerate(content[kind]):
            for key, fits in read.items():
                is_there = isinstance(item, dict) and key in item
                if not is_there and key in keys:
                    return f'{kind}[{i}] has no {key}'
                if is_there and not fits(item[key]):
                    return f'{kind}[{i}] has the {key} {repr(item[key])[:60]}'
        ids = [item['id'] for item in content[kind] if 'id' in keys]
        doubles = _doubles(ids)
        if doubles:
            return f'two of its {kind} have one id ({list_some(doubles)})'
        if len(set(map(type, ids))) > 1:  # pycocotools sorts them
            return f'the ids of its {kind} are of different types, such as 1 and "1"'
    doubles = _doubles(category['name'] for category in content['categories'])
    if doubles:
        return f'it has several categories of one name ({list_some(doubles)})'
    known = {image['id'] for image in content['images']}
    lost = next((a for a in content['annotations'] if a['image_id'] not in known), None)
    return (
        lost and f'annotation {lost.get("id")} is of image {lost["image_id"]!r}, which is missing'
    )


def _doubles(values: Iterable[Any]) -> List[Any]:
    return [value for value, number in Counter(values).items() if number > 1]


def read_categories(path: Union[str, Path]) -> Optional[List[str]]:
    """The names of the categories in their order, without parsing the rest, which may be large.

    None for a file of another format, or one that is not on this machine.
    """
    try:
        text = Path(path).read_text(encoding='utf-8')
        start = text.index('[', text.rindex('"categories"'))
        categories, _ = json.JSONDecoder().raw_decode(text, start)
        return [category['name'] for category in categories]
    except Exception:
        return None


UNLISTED, IGNORED, OUTSIDE = 'of no listed category', 'that say ignore', 'outside the image'
THIN, WITHOUT_AREA = 'thinner than a pixel', 'with an area of 0 or less'
OVER_THE_BORDER = 'over the border'
# Faults of boxes, and what happens to them: in training by MMDetection, in testing by pycocotools.
FAULTS: Dict[str, Tuple[str, str]] = {
    UNLISTED: ('left out', 'left out'),
    IGNORED: ('left out', 'evaluated as others are'),  # pycocotools overwrites this key
    OUTSIDE: ('left out', 'counted as missed'),
    THIN: ('left out', 'counted as missed'),
    WITHOUT_AREA: ('left out', 'evaluated as others are'),
    OVER_THE_BORDER: ('used as they are', 'evaluated as others are'),
}


def faulty_boxes(content: Dict[str, Any]) -> Dict[str, List[Any]]:
    """The ids of annotations whose boxes have a fault, by the fault, one of ``FAULTS``.

    Args:
        content: What ``read_annotations`` returns.
    """
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
    categories = {category['id'] for category in content['categories']}
    found: Dict[str, List[Any]] = {}
    for annotation in content['annotations']:
        fault = _fault_of_box(annotation, sizes[annotation['image_id']])
        if annotation.get('ignore'):
            fault = IGNORED
        if annotation['category_id'] not in categories:
            fault = UNLISTED
        if fault:
            found.setdefault(fault, []).append(annotation.get('id'))
    return found


def _fault_of_box(annotation: Dict[str, Any], size: Tuple[float, float]) -> Optional[str]:
    x, y, width, height = annotation['bbox']
    if width < 1 or height < 1:
        return THIN
    if x >= size[0] or y >= size[1] or x + width <= 0 or y + height <= 0:
        return OUTSIDE
    if annotation['area'] <= 0:
        return WITHOUT_AREA
    is_inside = x >= 0 and y >= 0 and x + width <= size[0] and y + height <= size[1]
    return None if is_inside else OVER_THE_BORDER


def explain_classes(path: str, classes: Sequence[str]) -> str:
    """The sentence about a file that lacks some or all of the classes, or all images."""
    names = read_categories(path)
    doubles = _doubles(names or ())
    if doubles:
        return f'{path} has several categories of one name ({list_some(doubles)}): rename them.'
    if names is None or set(classes) <= set(names):
        return (
            f'no image of {path} is left: all are filtered out, as images without boxes are '
            '(filter_cfg).'
        )
    missing = [name for name in classes if name not in names]
    return (
        f'{path} has the categories {list_some(names)}, but not {list_some(missing)}: set '
        'metainfo=dict(classes=...) of the data sets to those in the file.'
    )


def explain_order(path: str, classes: Sequence[str]) -> Optional[str]:
    """The sentence about a file whose categories have another order than the classes.

    MMDetection numbers classes by their order in the file, but calls them by ``metainfo``.
    """
    names = [name for name in read_categories(path) or classes if name in set(classes)]
    if names == list(classes) or len(names) != len(classes):
        return None
    in_file, given = list_difference(names, classes)
    return (
        f'{path} lists its categories as {in_file}, by which MMDetection numbers them, but '
        f"metainfo as {given}: set metainfo=dict(classes=...) of all data sets to the file's "
        'order, which must be the same in all files.'
    )


def list_difference(first: Sequence[Any], second: Sequence[Any]) -> Tuple[str, str]:
    """Two lists, as ``list_some`` has them, without what they begin with in common."""
    common = len(os.path.commonprefix([list(first), list(second)]))
    dots, nothing = ('..., ', 'no more') if common else ('', 'none')
    return tuple(dots + (list_some(each[common:]) or nothing) for each in (first, second))


def list_some(names: Sequence[Any], most: int = 8) -> str:
    """The first names of a list, and how many more there are."""
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(map(str, names[:most])) + more
