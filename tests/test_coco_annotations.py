"""Files of annotations: their faults, their categories, and boxes that MMDetection leaves out."""

import json
import re

import pytest
from mmdet.registry import DATASETS

from mmvanilla import UsageError, coco_annotations

IMAGE = dict(id=5, file_name='a.jpg', width=64, height=48)
GOOD = dict(id=1, image_id=5, category_id=2, bbox=[0, 0, 64, 48], area=3072, iscrowd=0)


def make_content(*changes):
    annotations = [{**GOOD, 'id': i, **change} for i, change in enumerate(changes, 1)]
    return dict(images=[IMAGE], categories=[dict(id=2, name='a')], annotations=annotations)


@pytest.mark.parametrize(
    ('change', 'fault'),
    [
        (dict(), None),
        (dict(category_id=1), 'of no listed category'),
        (dict(bbox=[9, 9, 0, 0], area=0), 'without an area'),
        (dict(bbox=[9, 9, 0.5, 9]), 'without an area'),
        (dict(area=0), 'without an area'),
        (dict(bbox=[64, 9, 9, 9]), 'outside the image'),
        (dict(bbox=[-9, 9, 9, 9]), 'outside the image'),
        (dict(bbox=[9, 48, 9, 9]), 'outside the image'),
        (dict(bbox=[60, 9, 9, 9]), 'over the border'),
        (dict(bbox=[9, -1, 9, 9]), 'over the border'),
    ],
)
def test_faulty_boxes_are_those_that_mmdet_leaves_out(change, fault, tmp_path):
    content = make_content({}, change)
    assert coco_annotations.faulty_boxes(content) == ({fault: [2]} if fault else {})
    (tmp_path / 'a.json').write_text(json.dumps(content))
    cfg = dict(
        type='mmdet.CocoDataset',
        ann_file=str(tmp_path / 'a.json'),
        data_prefix=dict(img=''),
        metainfo=dict(classes=['a']),
    )
    used = DATASETS.build(cfg).get_data_info(0)['instances']
    assert len(used) == (2 if fault in (None, coco_annotations.OVER_THE_BORDER) else 1)


@pytest.mark.parametrize(
    ('content', 'fault'),
    [
        (None, 'it is no JSON file'),
        ([], 'it holds a list, but COCO has a dict'),
        (dict(images=[], annotations=[]), 'it has no list of categories'),
        (make_content(dict(bbox=[1, 2, 3])), r'annotations\[0\] has the bbox \[1, 2, 3\]'),
        (make_content(dict(bbox=[1, 2, 3, float('nan')])), r'annotations\[0\] has the bbox'),
        (make_content(dict(image_id=7)), 'annotation 1 is of image 7, which is missing'),
    ],
)
def test_faults_of_files(content, fault, tmp_path):
    path = tmp_path / 'a.json'
    if content is not None:
        path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=f'a.json is not as it should be: {fault}'):
        coco_annotations.read_annotations(path)


@pytest.mark.parametrize('first', [True, False])
def test_categories_are_read_alone(first, tmp_path):
    names = ['dog', 'cat']
    categories = dict(categories=[dict(id=i, name=name) for i, name in enumerate(names)])
    rest = dict(info=dict(description='the "categories" of'), images=[IMAGE] * 3)
    content = {**categories, **rest} if first else {**rest, **categories}
    (tmp_path / 'a.json').write_text(json.dumps(content))
    assert coco_annotations.read_categories(tmp_path / 'a.json') == names
    assert coco_annotations.read_categories(tmp_path / 'b.json') is None


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (('dog', 'cat', 'cow'), None),
        (('dog', 'cow'), None),
        (('cat', 'dog'), 'lists its categories as dog, cat, by which .* but metainfo as cat, dog'),
        (('cow', 'dog'), 'lists its categories as dog, cow'),
    ],
)
def test_order_of_categories(classes, message, tmp_path):
    path = tmp_path / 'a.json'
    names = ['dog', 'cat', 'cow']
    path.write_text(json.dumps(dict(categories=[dict(id=i, name=n) for i, n in enumerate(names)])))
    sentence = coco_annotations.explain_order(str(path), classes)
    assert sentence is None if message is None else re.search(message, sentence)
