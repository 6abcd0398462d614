"""The converter of Pascal VOC's annotations."""

import json

import pytest
from helpers.programs import fail

SCRIPT = 'tools/dataset_converters/voc_to_coco.py'
OBJECT = (
    '<object><name>{}</name><difficult>{}</difficult><bndbox><ymin>5</ymin><xmin>2</xmin>'
    '<xmax>12</xmax><ymax>9</ymax></bndbox></object>'
)


@pytest.fixture
def voc(tmp_path):
    folder = tmp_path / 'voc'
    for part in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (folder / part).mkdir(parents=True)
    objects = dict(a=OBJECT.format('dog', 0) + OBJECT.format('cat', 1), b=OBJECT.format('cat', 0))
    for name, text in {**objects, 'c': ''}.items():
        (folder / f'JPEGImages/{name}.jpg').write_text(name)
        size = '<size><width>40</width><height>30</height></size>'
        text = f'<annotation>{size}{text}</annotation>'
        (folder / f'Annotations/{name}.xml').write_text(text)
    (folder / 'ImageSets/Main/train.txt').write_text('a\nc\n')
    (folder / 'ImageSets/Main/test.txt').write_text('b\n')
    (folder / 'ImageSets/Main/cat_test.txt').write_text('b -1\n')
    return folder


def test_converts(voc, run_tool, tmp_path):
    run_tool(SCRIPT, voc, tmp_path / 'out')
    assert {path.name for path in (tmp_path / 'out/annotations').iterdir()} == {
        'train.json',
        'test.json',
    }
    assert [(tmp_path / f'out/images/{name}.jpg').read_text() for name in 'abc'] == ['a', 'b', 'c']
    train, test = (
        json.loads((tmp_path / f'out/annotations/{part}.json').read_text())
        for part in ('train', 'test')
    )
    categories = [dict(id=1, name='cat'), dict(id=2, name='dog')]
    assert train['categories'] == test['categories'] == categories
    size = dict(height=30, width=40)
    assert train['images'] == [
        dict(size, id=1, file_name='a.jpg'),
        dict(size, id=2, file_name='c.jpg'),
    ]
    box = dict(image_id=1, bbox=[2, 5, 10, 4], area=40, iscrowd=0)
    assert train['annotations'] == [
        dict(box, id=1, category_id=2, ignore=0),
        dict(box, id=2, category_id=1, ignore=1),
    ]
    assert test['annotations'] == [dict(box, id=1, category_id=1, ignore=0)]


@pytest.mark.parametrize('text', ['<annotation>', '<annotation><size/></annotation>'])
def test_wrong_annotations_are_named(text, voc, tmp_path, monkeypatch):
    (voc / 'Annotations/b.xml').write_text(text)
    sentence = fail(
        'dataset_converters/voc_to_coco', voc, tmp_path / 'out', monkeypatch=monkeypatch
    )
    assert 'b.xml is no annotation in the format of Pascal VOC' in sentence
    assert not (tmp_path / 'out').exists()


def test_other_folder_is_named(tmp_path, monkeypatch):
    sentence = fail(
        'dataset_converters/voc_to_coco', tmp_path, tmp_path / 'out', monkeypatch=monkeypatch
    )
    assert f'{tmp_path} has no ImageSets/Main/*.txt' in sentence
