"""Converts annotations in the format of Pascal VOC to the layout of docs/own_data.md.

The folder has JPEGImages/*.jpg, Annotations/*.xml and ImageSets/Main/*.txt with names of images.
Writes annotations/NAME.json for each NAME.txt, and copies the images.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any, Dict, List, Sequence
from xml.etree import ElementTree

from digits_to_coco import new_folder

from mmvanilla.cli.options import one_sentence_errors
from mmvanilla.errors import UsageError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path, help='the data in the format of Pascal VOC')
    parser.add_argument('out', type=Path, help='folder to create')
    return parser.parse_args()


def read_image(path: Path) -> Dict[str, Any]:
    """The size of an image, and its objects with their names and boxes.

    Raises:
        UsageError: if the file is not as it should be.
    """
    try:
        root = ElementTree.parse(path).getroot()
        size = {side: int(root.findtext(f'size/{side}')) for side in ('height', 'width')}
        objects = [
            dict(
                name=each.findtext('name').strip(),
                # As MMDetection's converter has it
                ignore=int(each.findtext('difficult', '0')),
                corners=[
                    float(each.findtext(f'bndbox/{side}'))
                    for side in ('xmin', 'ymin', 'xmax', 'ymax')
                ],
            )
            for each in root.iter('object')
        ]
    except (OSError, ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(f'{path} is no annotation in the format of Pascal VOC: {error}.') from None
    return dict(size, objects=objects)


def to_coco(names: Sequence[str], read: Dict[str, Dict[str, Any]], classes: List[str]) -> Dict:
    """Annotations in COCO's format.

    Args:
        names: Of the images.
        read: What ``read_image`` returns, by these names.
        classes: The classes in their order.
    """
    images, annotations = [], []
    for number, name in enumerate(names, 1):
        image = dict(read[name], id=number, file_name=f'{name}.jpg')
        for each in image.pop('objects'):
            left, top, right, bottom = each['corners']
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=number,
                    category_id=classes.index(each['name']) + 1,
                    bbox=[left, top, right - left, bottom - top],
                    area=(right - left) * (bottom - top),
                    iscrowd=0,
                    ignore=each['ignore'],
                )
            )
        images.append(image)
    categories = [dict(id=number, name=name) for number, name in enumerate(classes, 1)]
    return dict(images=images, annotations=annotations, categories=categories)


def main() -> None:
    args = parse_args()
    lists = {
        path.stem: path.read_text().split()
        for path in sorted(args.folder.glob('ImageSets/Main/*.txt'))
        if '_' not in path.stem  # VOC has others, for each class
    }
    if not lists:
        raise UsageError(f'{args.folder} has no ImageSets/Main/*.txt: name the folder with these.')
    names = sorted({name for each in lists.values() for name in each})
    read = {name: read_image(args.folder / f'Annotations/{name}.xml') for name in names}
    classes = sorted({each['name'] for image in read.values() for each in image['objects']})
    with new_folder(args.out) as folder:
        (folder / 'images').mkdir(parents=True)
        (folder / 'annotations').mkdir()
        for name in names:
            shutil.copy(args.folder / f'JPEGImages/{name}.jpg', folder / 'images')
        for part, own in lists.items():
            content = json.dumps(to_coco(own, read, classes))
            (folder / f'annotations/{part}.json').write_text(content)
    print(f'Wrote {len(names)} images of {", ".join(classes)} to {args.out}.')


if __name__ == '__main__':
    with one_sentence_errors():
        main()
