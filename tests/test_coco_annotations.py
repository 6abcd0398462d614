"""Files of annotations: their faults, their categories, and boxes that MMDetection leaves out."""

import json
import re

import pytest
from mmdet.registry import DATASETS
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

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
        (dict(bbox=[9, 9, 0, 0], area=0), 'thinner than a pixel'),
        (dict(bbox=[9, 9, 0.5, 9]), 'thinner than a pixel'),
        (dict(area=0), 'with an area of 0 or less'),
        (dict(ignore=1), 'that say ignore'),
        (dict(ignore=0), None),
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
    left_out = fault and coco_annotations.FAULTS[fault][False] == 'left out'
    assert len(used) == (1 if left_out else 2)


# A detector finds the right box in an image, and whatever it can of one that has a fault.
@pytest.mark.parametrize('fault', coco_annotations.FAULTS)
@pytest.mark.parametrize('is_found', [True, False])
def test_what_pycocotools_makes_of_faulty_boxes(fault, is_found, tmp_path):
    change, seen = {
        coco_annotations.UNLISTED: (dict(category_id=1), True),
        coco_annotations.IGNORED: (dict(ignore=1), True),
        coco_annotations.OUTSIDE: (dict(bbox=[70, 9, 9, 9]), False),
        coco_annotations.THIN: (dict(bbox=[9, 9, 0, 9]), False),
        coco_annotations.WITHOUT_AREA: (dict(area=0), True),
        coco_annotations.OVER_THE_BORDER: (dict(bbox=[50, 9, 20, 20]), True),
    }[fault]
    change = dict(dict(bbox=[30, 9, 20, 20], area=400), **change)
    content = make_content({}, change)
    assert coco_annotations.faulty_boxes(content) == {fault: [2]}
    detector = COCO()
    detector.dataset = content
    detector.createIndex()
    boxes = [GOOD['bbox']] + [change['bbox']] * (is_found and seen)
    found = [dict(image_id=5, category_id=2, bbox=box, score=0.9) for box in boxes]
    evaluation = COCOeval(detector, detector.loadRes(found), 'bbox')
    evaluation.params.catIds = [2]  # as MMDetection's metric sets it
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    is_missed = {
        'left out': False,
        'counted as missed': True,
        'evaluated as others are': not is_found,
    }[coco_annotations.FAULTS[fault][True]]
    recall = evaluation.stats[8]
    assert recall == pytest.approx(0.5 if is_missed else 1)


@pytest.mark.parametrize(
    ('content', 'fault'),
    [
        ([], 'it holds a list, but COCO has a dict'),
        (dict(images=[], annotations=[]), 'it has no list of categories'),
        (make_content(dict(bbox=[1, 2, 3])), r'annotations\[0\] has the bbox \[1, 2, 3\]'),
        (make_content(dict(bbox=[1, 2, 3, float('nan')])), r'annotations\[0\] has the bbox'),
        (make_content(dict(bbox=[10**400, 1.5, 3, 4])), r'annotations\[0\] has the bbox'),
        (make_content(dict(id=[1])), r'annotations\[0\] has the id \[1\]'),
        (make_content(dict(iscrowd=None)), r'annotations\[0\] has the iscrowd None'),
        (make_content(dict(iscrowd='0')), r"annotations\[0\] has the iscrowd '0'"),
        (dict(make_content(), images=[dict(IMAGE, height=0)]), r'images\[0\] has the height 0'),
        (
            dict(make_content(), images=[dict(IMAGE, file_name='')]),
            r'images\[0\] has the file_name',
        ),
        (
            dict(make_content(), images=[IMAGE, dict(IMAGE, id='5')]),
            'the ids of its images are of different types',
        ),
        (make_content(dict(image_id='5')), "annotation 1 is of image '5', which is missing"),
        (dict(make_content({}), images=[IMAGE] * 2), r'two of its images have one id \(5\)'),
        (
            dict(make_content({}), categories=[dict(id=i, name=n) for i, n in enumerate('abcb')]),
            r'it has several categories of one name \(b\)',
        ),
    ],
)
def test_faults_of_files(content, fault, tmp_path):
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=f'a.json is not as it should be: {fault}'):
        coco_annotations.read_annotations(path)


@pytest.mark.parametrize('text', ['', '{"images": [', '[' * 100_000])
def test_other_files_are_named(text, tmp_path):
    (tmp_path / 'a.json').write_text(text)
    with pytest.raises(UsageError, match='a.json is not as it should be: it is no JSON file'):
        coco_annotations.read_annotations(tmp_path / 'a.json')
    with pytest.raises(UsageError, match='b.json does not exist: put the annotations there'):
        coco_annotations.read_annotations(tmp_path / 'b.json')


@pytest.mark.parametrize(
    ('first', 'second', 'shown'),
    [
        ('ab', 'ba', ('a, b', 'b, a')),
        ('abcde', 'abedc', ('..., c, d, e', '..., e, d, c')),
        ('abc', 'ab', ('..., c', '..., no more')),
        ('', 'ab', ('none', 'a, b')),
    ],
)
def test_lists_are_shown_from_where_they_differ(first, second, shown):
    assert coco_annotations.list_difference(list(first), list(second)) == shown


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
