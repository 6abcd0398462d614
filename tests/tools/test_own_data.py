"""Detectors on a user's own folder: its faults are named, and a small comparison runs."""

import json
from argparse import Namespace
from itertools import product

import own_data
import pytest
from helpers.own_folder import copy_as_own
from helpers.programs import ROOT, fail, parse
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from mmvanilla.compatibility import meta_device

DETECTORS = ['_'.join(each) for each in product(own_data.DETECTORS, own_data.BACKBONES)]


@pytest.mark.parametrize('name', DETECTORS)
def test_config_is_of_the_data(name, tmp_path):
    args = Namespace(folder=tmp_path, train='all', test='few', epochs=28, scale=[64, 48])
    cfg = own_data.make_config(name, args, ['a', 'b'])
    for split, file in (('train', 'all'), ('val', 'few'), ('test', 'few')):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert dataset.data_root == str(tmp_path)
        assert dataset.ann_file == f'annotations/{file}.json'
        assert dataset.metainfo.classes == ('a', 'b')
        assert [t.scale for t in dataset.pipeline if t.type == 'Resize'] == [(64, 48)]
        assert cfg[f'{split}_dataloader'].batch_size == (8 if split == 'train' else 10)
    assert cfg.test_evaluator.ann_file == str(tmp_path / 'annotations/few.json')
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].end == 28
    hooks = cfg.get('custom_hooks') or []
    assert [hook.decay_epochs for hook in hooks] == ([12] if 'vanillanet' in name else [])
    init_default_scope('mmdet')
    with meta_device():
        model = MODELS.build(cfg.model)
    head = model.roi_head.bbox_head if 'faster' in name else model.bbox_head
    assert head.num_classes == 2
    assert model.backbone.out_channels if 'vanillanet' in name else model.backbone.depth == 18


def test_backbones_cost_the_same():
    for detector in own_data.DETECTORS:
        counted = [
            own_data.count(
                own_data.read_config(ROOT / f'configs/own_data/{detector}_{backbone}.py'),
                (240, 320),
                deploy=True,
            )
            for backbone in own_data.BACKBONES
        ]
        for kind in ('parameters', 'macs'):
            ours, other = (each[kind] for each in counted)
            assert 0.9 < ours / other < 1.1


IMAGE = dict(id=5, file_name='a.jpg', width=64, height=48)
GOOD = dict(id=1, image_id=5, category_id=2, bbox=[0, 0, 64, 48], area=3072, iscrowd=0)


@pytest.mark.parametrize(
    ('change', 'fault'),
    [
        (dict(), None),
        (dict(image_id=6), 'of an image that is not listed, left out'),
        (dict(category_id=1), 'of a category that is not listed, left out'),
        (dict(bbox=[9, 9, 0, 0], area=0), 'without an area, left out'),
        (dict(bbox=[9, 9, 0.5, 9]), 'without an area, left out'),
        (dict(bbox=[64, 9, 9, 9]), 'outside the image, left out'),
        (dict(bbox=[-9, 9, 9, 9]), 'outside the image, left out'),
        (dict(bbox=[60, 9, 9, 9]), 'over the border, kept'),
    ],
)
def test_faults_of_annotations(change, fault):
    content = dict(
        images=[IMAGE], categories=[dict(id=2, name='a')], annotations=[{**GOOD, **change}]
    )
    assert own_data.find_faults(content) == ({fault: [1]} if fault else {})


def test_faults_are_what_mmdet_leaves_out(tmp_path):
    """MMDetection uses exactly the boxes of which nothing says that they are left out."""
    boxes = [[0, 0, 64, 48], [9, 9, 0, 0], [9, 9, 0.5, 9], [64, 9, 9, 9], [60, 9, 9, 9]]
    annotations = [dict(GOOD, id=i, bbox=box, area=box[2] * box[3]) for i, box in enumerate(boxes)]
    annotations.append(dict(GOOD, id=len(boxes), category_id=7))
    content = dict(images=[IMAGE], categories=[dict(id=2, name='a')], annotations=annotations)
    (tmp_path / 'a.json').write_text(json.dumps(content))
    cfg = dict(
        type='mmdet.CocoDataset',
        ann_file=str(tmp_path / 'a.json'),
        data_prefix=dict(img=''),
        metainfo=dict(classes=['a']),
    )
    dataset = own_data.DATASETS.build(cfg)
    left_out = [
        i for fault, ids in own_data.find_faults(content).items() if 'left' in fault for i in ids
    ]
    used = [each['bbox'] for each in dataset.get_data_info(0)['instances']]
    corners = [[x, y, x + w, y + h] for i, (x, y, w, h) in enumerate(boxes) if i not in left_out]
    assert used == corners
    assert sorted(left_out) == [1, 2, 3, 5]


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'train.json does not exist: put it there'),
        ('{', 'train.json is no JSON file'),
        ('[]', "train.json is not in COCO's format: it needs images, annotations, categories"),
        ('{"images": [], "annotations": [], "categories": []}', "not in COCO's format"),
    ],
)
def test_wrong_files_end_in_a_sentence(content, message, tmp_path, monkeypatch):
    (tmp_path / 'annotations').mkdir()
    if content is not None:
        (tmp_path / 'annotations/train.json').write_text(content)
    sentence = fail(
        'demos/own_data', tmp_path, '--work-dir', tmp_path / 'out', monkeypatch=monkeypatch
    )
    assert message in sentence
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_compares_on_a_folder(digits, run_tool, tmp_path, capsys):
    folder = copy_as_own(digits, tmp_path / 'own')
    path = folder / 'annotations/train.json'
    content = json.loads(path.read_text())
    content['annotations'][0].update(bbox=[9, 9, 0, 0], area=0)
    path.write_text(json.dumps(content))
    arguments = [folder, '--seeds', 2, '--epochs', 2, '--scale', 96, 96]
    arguments += ['--detectors', 'retinanet', '--work-dir', tmp_path / 'out']
    run_tool('tools/demos/own_data.py', *arguments)
    out, err = capsys.readouterr()
    assert f'warning: {path}: 1 boxes without an area, left out: annotations 1' in err
    rows = parse(out)
    assert [row[:2] for row in rows] == [['retinanet', each] for each in own_data.BACKBONES]
    for _, backbone, *_, steps, _, box, _, fused, by_seed in rows:
        assert steps == '4'
        assert box == fused and '±' in box and len(by_seed.split(',')) == 2
        assert (tmp_path / f'out/retinanet_{backbone}.png').stat().st_size > 10_000
    assert (tmp_path / 'out/results.md').read_text().endswith(f'{rows[-1][-1]} |\n')
    run_tool('tools/demos/own_data.py', *arguments)
    assert '$ python' not in (again := capsys.readouterr().out)  # nothing is trained again
    assert parse(again) == rows
