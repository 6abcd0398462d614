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
    box = dict(image_id=1, bbox=[2, 5, 10, 4], area=40)
    assert train['annotations'] == [
        dict(box, id=1, category_id=2, iscrowd=0),
        dict(box, id=2, category_id=1, iscrowd=1),
    ]
    assert test['annotations'] == [dict(box, id=1, category_id=1, iscrowd=0)]


def replace(folder, old, new, file='Annotations/b.xml'):
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))


def test_odd_but_right_data(voc, run_tool, tmp_path, capsys):
    """Formats, sub-folders, spaces, a byte order mark, decimals, doubles, boxes inside out."""
    (voc / 'JPEGImages/x').mkdir()
    (voc / 'JPEGImages/b.jpg').rename(voc / 'JPEGImages/x/b 1.PNG')
    (voc / 'JPEGImages/x/b 1.txt').write_text('no image')
    (voc / 'Annotations/x').mkdir()
    (voc / 'Annotations/b.xml').rename(voc / 'Annotations/x/b 1.xml')
    (voc / 'ImageSets/Main/my_test.txt').write_text('\ufeffx/b 1\r\n\r\nx/b 1\r\n')
    (voc / 'ImageSets/Main/test.txt').unlink()
    (voc / 'ImageSets/Main/train.txt').write_text('a.jpg\nc\n')
    file = 'Annotations/x/b 1.xml'
    replace(voc, '<difficult>0</difficult>', '<difficult/>', file)
    replace(voc, '<width>40<', '<width>40.0<', file)
    replace(voc, '<xmax>12<', '<xmax>-2.5<', file)
    run_tool(SCRIPT, voc, tmp_path / 'out', '--classes', 'dog', 'cat')
    content = json.loads((tmp_path / 'out/annotations/my_test.json').read_text())
    assert content['images'] == [dict(id=1, file_name='x/b 1.PNG', height=30, width=40)]
    assert (tmp_path / 'out/images/x/b 1.PNG').read_text() == 'b'
    assert [each['name'] for each in content['categories']] == ['dog', 'cat']
    (annotation,) = content['annotations']
    assert annotation == dict(
        id=1, image_id=1, category_id=2, bbox=[2, 5, -4.5, 4], area=0, iscrowd=0
    )
    assert 'have boxes without width or height, or with their' in (err := capsys.readouterr().err)
    assert err.endswith('corners swapped: x/b 1\n')
    train = json.loads((tmp_path / 'out/annotations/train.json').read_text())
    assert [image['file_name'] for image in train['images']] == ['a.jpg', 'c.jpg']


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda f: replace(f, '</annotation>', ''), 'b.xml is no XML file: no element found'),
        (lambda f: replace(f, '<size>', '<other>'), 'b.xml is no XML file: mismatched tag'),
        (
            lambda f: (f / 'Annotations/b.xml').write_text(
                '<?xml version="1.0" encoding="z"?><a/>'
            ),
            'b.xml is no XML file: unknown encoding: z',
        ),
        (lambda f: replace(f, '<width>40<', '<width>0<'), 'b.xml has a height or width of 0'),
        (lambda f: replace(f, '<width>40</width>', ''), 'has the size/width None: write a number'),
        (lambda f: replace(f, '<xmin>2<', '<xmin>nan<'), "the bndbox/xmin 'nan': write a number"),
        (lambda f: replace(f, '<name>cat</name>', ''), 'b.xml has an object without a name'),
        (lambda f: (f / 'Annotations/b.xml').unlink(), 'b.xml does not exist: put it there'),
        (
            lambda f: (f / 'JPEGImages/b.jpg').unlink(),
            'test.txt names images that are not in JPEGImages: b. Put',
        ),
        (
            lambda f: (f / 'ImageSets/Main/test.txt').write_text('../../b\n'),
            'that are not in JPEGImages: ../../b.',
        ),
        (lambda f: (f / 'ImageSets/Main/test.txt').write_text('\n'), 'test.txt names no image'),
        (
            lambda f: (f / 'ImageSets/Main/test.txt').write_bytes(b'\xff\xff'),
            'test.txt cannot be read: ',
        ),
    ],
)
def test_wrong_data_are_named(damage, message, voc, tmp_path, monkeypatch):
    damage(voc)
    sentence = fail(
        'dataset_converters/voc_to_coco', voc, tmp_path / 'out', monkeypatch=monkeypatch
    )
    assert message in sentence
    assert not list(tmp_path.glob('out*'))


def test_other_classes_are_named(voc, tmp_path, monkeypatch):
    arguments = (voc, tmp_path / 'out', '--classes', 'dog', 'cow')
    sentence = fail('dataset_converters/voc_to_coco', *arguments, monkeypatch=monkeypatch)
    assert '--classes names dog, cow, but there are cat, dog.' in sentence


def test_other_folder_is_named(tmp_path, monkeypatch):
    sentence = fail(
        'dataset_converters/voc_to_coco', tmp_path, tmp_path / 'out', monkeypatch=monkeypatch
    )
    assert f'{tmp_path} has no lists of all classes, such as ImageSets/Main/train.txt' in sentence
