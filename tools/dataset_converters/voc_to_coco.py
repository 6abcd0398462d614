"""Converts annotations in the format of Pascal VOC to the layout of docs/own_data.md.

The folder has JPEGImages, Annotations/*.xml and ImageSets/Main/*.txt with names of images. Writes
annotations/NAME.json for each NAME.txt, and copies the images. Coordinates stay as they are;
objects that are marked as difficult become crowds, as in MMDetection's converter.
"""

import argparse
import json
import mimetypes
import re
import shutil
import sys
from math import isfinite
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence
from xml.etree import ElementTree

from digits_to_coco import new_folder

from mmvanilla.cli.options import one_sentence_errors
from mmvanilla.coco_annotations import list_some
from mmvanilla.errors import UsageError

CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path, help='the data in the format of Pascal VOC')
    parser.add_argument('out', type=Path, help='folder to create')
    parser.add_argument(
        '--classes', nargs='+', help='their names, in the order to number them; else alphabetical'
    )
    return parser.parse_args()


def find_images(folder: Path) -> Dict[str, Path]:
    """The images in a folder and its sub-folders, of any format, by their names; paths in it."""
    kinds = {path: mimetypes.guess_type(path.name, strict=False)[0] for path in folder.rglob('*')}
    paths = [path.relative_to(folder) for path, kind in kinds.items() if 'image/' in str(kind)]
    return {path.with_suffix('').as_posix(): path for path in sorted(paths)}


def read_lists(folder: Path, images: Dict[str, Path]) -> Dict[str, List[str]]:
    """The names of images in each list of a folder, without those of single classes.

    Raises:
        UsageError: if there is no list, if one is empty, or if it names none of the images.
    """
    lists, named = {}, {path.as_posix(): name for name, path in images.items()}
    for path in sorted(folder.glob('ImageSets/Main/*.txt')):
        lines = [line.strip() for line in read_text(path).splitlines()]
        names = list(dict.fromkeys(named.get(line, line) for line in lines if line))
        if not names:
            raise UsageError(f'{path} names no image: remove it, or write names of images into it.')
        missing = [name for name in names if name not in images]
        if missing == names and all(re.search(r'\s(-1|0|1)$', name) for name in names):
            continue  # such as cat_train.txt: whether each image shows a cat
        if missing:
            raise UsageError(
                f'{path} names images that are not in JPEGImages: {list_some(missing)}. Put them '
                'there, or take their names out.'
            )
        lists[path.stem] = names
    if not lists:
        raise UsageError(
            f'{folder} has no lists of all classes, such as ImageSets/Main/train.txt: write the '
            'names of the images into some, one in a line.'
        )
    return lists


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f'{path} cannot be read: {error}.') from None


def read_image(path: Path) -> Dict[str, Any]:
    """The size of an image, and its objects with their names and corners.

    Raises:
        UsageError: if the file is not as it should be.
    """
    if not path.is_file():
        raise UsageError(f'{path} does not exist: put it there, or change ImageSets/Main.')

    def read_number(
        parent: ElementTree.Element, place: str, default: Optional[str] = None
    ) -> float:
        text = parent.findtext(place) or default
        try:
            number = float(text)
        except (TypeError, ValueError):
            number = float('nan')
        if not isfinite(number):
            raise UsageError(f'{path} has the {place} {text!r}: write a number.')
        return number

    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, LookupError, ValueError, ElementTree.ParseError) as error:
        raise UsageError(f'{path} is no XML file: {error}.') from None
    size = {side: int(read_number(root, f'size/{side}')) for side in ('height', 'width')}
    if min(size.values()) < 1:
        raise UsageError(f'{path} has a height or width of 0: write those of the image.')
    objects = [
        dict(
            name=(each.findtext('name') or '').strip(),
            difficult=int(read_number(each, 'difficult', '0')),
            corners=[read_number(each, f'bndbox/{side}') for side in CORNERS],
        )
        for each in root.iter('object')
    ]
    if not all(each['name'] for each in objects):
        raise UsageError(f'{path} has an object without a name: write one.')
    return dict(size, objects=objects)


def is_empty(found: Dict[str, Any]) -> bool:
    """Whether the box of an object has no width or height, or less."""
    left, top, right, bottom = found['corners']
    return right <= left or bottom <= top


def to_coco(images: Sequence[Dict[str, Any]], classes: Sequence[str]) -> Dict[str, Any]:
    """Annotations in COCO's format.

    Args:
        images: What ``read_image`` returns, with their ``file_name``.
        classes: The classes in their order.
    """
    annotations = []
    for number, image in enumerate(images, 1):
        for each in image['objects']:
            left, top, right, bottom = each['corners']
            width, height = right - left, bottom - top
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=number,
                    category_id=classes.index(each['name']) + 1,
                    bbox=[left, top, width, height],
                    area=max(0, width) * max(0, height),
                    iscrowd=each['difficult'],
                )
            )
    keys = ('file_name', 'height', 'width')
    return dict(
        images=[
            dict({key: image[key] for key in keys}, id=number)
            for number, image in enumerate(images, 1)
        ],
        annotations=annotations,
        categories=[dict(id=number, name=name) for number, name in enumerate(classes, 1)],
    )


def main() -> None:
    args = parse_args()
    paths = find_images(args.folder / 'JPEGImages')
    lists = read_lists(args.folder, paths)
    names = sorted({name for each in lists.values() for name in each})
    read = {
        name: dict(
            read_image(args.folder / f'Annotations/{name}.xml'),
            file_name=paths[name].as_posix(),
        )
        for name in names
    }
    found = sorted({each['name'] for image in read.values() for each in image['objects']})
    classes = args.classes or found
    if sorted(classes) != found:
        raise UsageError(f'--classes names {list_some(classes)}, but there are {list_some(found)}.')
    with new_folder(args.out) as folder:
        for name in names:
            target = folder / 'images' / paths[name]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(args.folder / 'JPEGImages' / paths[name], target)
        (folder / 'annotations').mkdir()
        for part, own in lists.items():
            content = json.dumps(to_coco([read[name] for name in own], classes))
            (folder / f'annotations/{part}.json').write_text(content)
    odd = [name for name in names if any(map(is_empty, read[name]['objects']))]
    if odd:
        print(
            f'warning: {len(odd)} of Annotations/*.xml have boxes without width or height, or with '
            f'their corners swapped: {list_some(odd)}',
            file=sys.stderr,
        )
    print(f'Wrote {len(names)} images of {", ".join(classes)} to {args.out}.')


if __name__ == '__main__':
    with one_sentence_errors():
        main()
