"""Data in the layout of docs/own_data.md: images/ and annotations/NAME.json."""

import json
import shutil


def copy_as_own(digits, folder, change=lambda content: None):
    """Copies the digits' images and annotations, which ``change`` may change in place."""
    (folder / 'annotations').mkdir(parents=True)
    (folder / 'images').mkdir()
    for part in ('train', 'val'):
        content = json.loads((digits / f'annotations/instances_{part}2017.json').read_text())
        for image in content['images']:  # the parts have images of the same names
            name = f'{part}_{image["file_name"]}'
            shutil.copy(digits / f'{part}2017' / image['file_name'], folder / 'images' / name)
            image['file_name'] = name
        change(content)
        (folder / f'annotations/{part}.json').write_text(json.dumps(content))
    return folder
