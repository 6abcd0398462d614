"""Detectors on a user's own folder: its faults are named, and a small comparison runs."""

import json
import os
import re
from argparse import Namespace
from itertools import product

import cv2
import own_data
import pytest
from helpers.own_folder import copy_as_own
from helpers.programs import ROOT, fail, parse, reserved_by_another
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
        assert tuple(dataset.metainfo.classes) == ('a', 'b')
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
    kind = 'VanillaNet' if 'vanillanet' in name else 'ResNet'
    assert type(model.backbone).__name__ == kind


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


@pytest.fixture
def folder(digits, tmp_path):
    return copy_as_own(digits, tmp_path / 'own')


def change(path, key, number=0, **values):
    """Changes an entry of a file of annotations; None removes a value."""
    content = json.loads(path.read_text())
    entry = content[key][number]
    entry.update(values)
    content[key][number] = {name: value for name, value in entry.items() if value is not None}
    path.write_text(json.dumps(content))


def reorder(folder):
    path = folder / 'annotations/val.json'
    content = json.loads(path.read_text())
    content['categories'] = content['categories'][::-1]
    path.write_text(json.dumps(content))


def change_all(path, **values):
    """Changes all annotations of a file."""
    content = json.loads(path.read_text())
    for annotation in content['annotations']:
        annotation.update(values)
    path.write_text(json.dumps(content))


def make_crowds(folder):
    change_all(folder / 'annotations/train.json', iscrowd=1)


def empty(path, key):
    path.write_text(json.dumps({**json.loads(path.read_text()), key: []}))


WRONG = [
    (lambda f: (f / 'annotations/train.json').unlink(), 'train.json does not exist'),
    (lambda f: (f / 'annotations/val.json').write_text('{'), 'val.json is not as it should be'),
    (lambda f: (f / 'annotations/val.json').write_text('[]'), 'it holds a list'),
    (
        lambda f: change(f / 'annotations/train.json', 'annotations', 3, bbox=None),
        r'\[3\] has no bbox',
    ),
    (reorder, 'val.json nine, eight, seven, .* write the same into both, in one order'),
    (
        lambda f: (f / 'images/val_000000000002.jpg').unlink(),
        'images lacks 1 images that .*val.json lists: val_000000000002.jpg. Put them there',
    ),
    (lambda f: change(f / 'annotations/val.json', 'annotations', id=0), 'number them from 1'),
    (lambda f: change(f / 'annotations/val.json', 'annotations', id='a'), 'number them from 1'),
    (lambda f: change(f / 'annotations/val.json', 'annotations', id=None), 'has no id'),
    (lambda f: change(f / 'annotations/val.json', 'annotations', id=2), 'the id of another'),
    (lambda f: change(f / 'annotations/train.json', 'annotations', id=2), 'the id of another'),
    (lambda f: change(f / 'annotations/val.json', 'annotations', iscrowd=None), 'has no iscrowd'),
    (
        make_crowds,
        'train.json has no box that can be used: there are [0-9]+ of crowds',
    ),
    (
        lambda f: change_all(f / 'annotations/train.json', category_id='1'),
        'train.json has no box that can be used: there are [0-9]+ of no listed category',
    ),
    (lambda f: change(f / 'annotations/val.json', 'annotations', iscrowd='0'), "the iscrowd '0'"),
    (lambda f: change(f / 'annotations/train.json', 'images', file_name='a' * 300), 'lacks 1 im'),
    (
        lambda f: empty(f / 'annotations/train.json', 'categories'),
        'train.json has the categories none, but .*val.json zero, one',
    ),
    (lambda f: change(f / 'annotations/train.json', 'images', 1, id=1), 'two of its images have'),
    (lambda f: change(f / 'annotations/train.json', 'categories', name='two'), 'of one name'),
    (lambda f: (f / 'images/val_000000000002.jpg').write_text('no image'), 'cannot be loaded'),
    (
        lambda f: change(f / 'annotations/train.json', 'images', height='9'),
        r"images\[0\] has the height '9'",
    ),
]


@pytest.mark.parametrize(('damage', 'message'), WRONG)
def test_wrong_data_end_in_a_sentence(damage, message, folder, monkeypatch, tmp_path):
    damage(folder)
    arguments = (folder, '--work-dir', tmp_path / 'out')
    sentence = fail('demos/own_data', *arguments, monkeypatch=monkeypatch)
    assert re.search(message, sentence), sentence
    assert not (tmp_path / 'out').exists()


def test_faulty_boxes_are_named(folder, capsys):
    change(folder / 'annotations/train.json', 'annotations', 1, bbox=[9, 9, 0, 0], area=0)
    change(folder / 'annotations/train.json', 'annotations', 2, bbox=[200, 9, 99, 9])
    change(folder / 'annotations/val.json', 'annotations', 0, bbox=[300, 9, 9, 9])
    train, val = (folder / f'annotations/{name}.json' for name in ('train', 'val'))
    classes, images = own_data.check_files(train, val, folder / 'images')
    assert classes[0] == 'zero' and len(classes) == 10
    assert len(images) == 20
    err = capsys.readouterr().err
    assert f'{train}: 1 with boxes thinner than a pixel, which are left out: annotations 2' in err
    assert (
        f'{train}: 1 with boxes over the border, which are used as they are: annotations 3' in err
    )
    assert (
        f'{val}: 1 with boxes outside the image, which are counted as missed: annotations 1' in err
    )


def test_doubtful_files_are_named(folder, capsys):
    train, val = (folder / f'annotations/{name}.json' for name in ('train', 'val'))
    content = json.loads(train.read_text())
    for image in content['images']:
        image.update(width=image['height'] // 2, height=image['width'])
    content['annotations'][0]['iscrowd'] = 1
    for annotation in content['annotations'][1:]:
        annotation['bbox'][:2] = [120, 250]
    train.write_text(json.dumps(content))
    _, images = own_data.check_files(train, val, folder / 'images')
    own_data.check_images(folder / 'images', images)
    err = capsys.readouterr().err
    assert f'{train}: most boxes reach over the border: is bbox [x, y, width, height]?' in err
    assert f'{train}: 1 annotations are of crowds (iscrowd 1): trained as background' in err
    number = len(content['images'])
    assert f'{number} images have another height and width than annotated: train_' in err
    own_data.check_files(train, train, folder / 'images')
    err = capsys.readouterr().err
    assert f'share {number} images' in err
    assert 'of crowds (iscrowd 1): predictions on them do not count as wrong' in err


def test_data_are_told_apart(folder):
    def digest():
        return own_data.digest([train], folder / 'images', ['val_000000000002.jpg'])

    train = folder / 'annotations/train.json'
    before = digest()
    assert digest() == before
    (folder / 'images/val_000000000002.jpg').write_bytes(b'another')
    image = digest()
    change(train, 'annotations', iscrowd=1)
    assert len({before, image, digest()}) == 3


def test_only_finished_runs_of_seeds_are_kept(tmp_path):
    for name in ('0', '2', '1.running'):
        (tmp_path / 'retinanet' / name).mkdir(parents=True)
        (tmp_path / 'retinanet' / name / 'results.json').touch()
    (tmp_path / 'retinanet/3').mkdir()
    assert own_data.Detector(tmp_path / 'retinanet.py', None, '').kept_seeds() == [0, 2]


@pytest.mark.parametrize(
    'name', ['retinanet_vanillanet-6.py', 'retinanet_vanillanet-6.png', 'results.md']
)
@pytest.mark.parametrize('make', [lambda path: path.write_text('mine'), lambda path: path.mkdir()])
def test_files_of_the_user_are_kept(name, make, folder, monkeypatch, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    make(out / name)
    sentence = fail('demos/own_data', folder, '--work-dir', out, monkeypatch=monkeypatch)
    assert f'{out / name} would be overwritten, but may be yours: move it' in sentence
    assert [path.name for path in out.iterdir()] == [name]


@pytest.mark.parametrize(
    'program',
    [('demos/own_data', 'data'), ('demos/seeds',), ('train', 'a.py'), ('test', 'a.py', 'b')],
)
def test_empty_work_dir_is_refused(program, run_tool, capsys):
    with pytest.raises(SystemExit):
        run_tool(f'tools/{program[0]}.py', *program[1:], '--work-dir', '')
    assert 'argument --work-dir: is empty: name a folder' in capsys.readouterr().err


def test_names_of_annotations():
    names = map(own_data.annotations_name, ['a', 'a.json', 'annotations/a.json', 'a.b'])
    assert list(names) == ['a', 'a', 'a', 'a.b']


def test_voc_is_told_to_be_converted(monkeypatch, tmp_path):
    (tmp_path / 'JPEGImages').mkdir()
    sentence = fail('demos/own_data', tmp_path, monkeypatch=monkeypatch)
    assert (
        'is in the format of Pascal VOC: convert it with tools/dataset_converters/voc' in sentence
    )


@pytest.mark.skipif(os.name == 'nt', reason='Windows has no locks')
def test_two_do_not_share_a_folder(folder, monkeypatch, tmp_path):
    """The work dir is reserved before the first training."""
    out = tmp_path / 'out'
    with reserved_by_another(out):
        arguments = (folder, '--work-dir', out)
        sentence = fail('demos/own_data', *arguments, monkeypatch=monkeypatch)
    assert f'another run is using {out}: wait until it ends' in sentence
    assert not list(out.iterdir())


@pytest.mark.slow
def test_compares_on_a_folder(folder, run_tool, tmp_path, capsys, monkeypatch):
    # As users' data are: fewer images than are drawn, and larger than they are resized to
    path = folder / 'annotations/train.json'
    change(path, 'annotations', 0, bbox=[9, 9, 0, 0], area=0)
    arguments = [folder, '--seeds', 2, '--epochs', 2, '--scale', 96, 96]
    arguments += ['--detectors', 'retinanet', '--work-dir', tmp_path / 'out']
    run_tool('tools/demos/own_data.py', *arguments)
    out, err = capsys.readouterr()
    assert f'warning: {path}: 1 with boxes thinner than a pixel, which are left out' in err
    rows = parse(out)
    assert [row[:2] for row in rows] == [['retinanet', each] for each in own_data.BACKBONES]
    for _, backbone, *_, steps, _, box, _, fused, by_seed in rows:
        assert steps == '4'
        assert fused == ('' if backbone == 'resnet-18' else box)
        assert '±' in box and len(by_seed.split(',')) == 2
        picture = cv2.imread(str(tmp_path / f'out/retinanet_{backbone}.png'))
        assert picture.shape[:2] == (2 * 262, 2 * 518)
    assert (tmp_path / 'out/results.md').read_text().endswith(f'{rows[-1][-1]} |\n')
    run_tool('tools/demos/own_data.py', *arguments)
    assert '$ python' not in (again := capsys.readouterr().out)  # nothing is trained again
    assert parse(again) == rows
    # Of fewer runs, the table has all that are kept.
    run_tool('tools/demos/own_data.py', *arguments, '--seeds', 1, '--backbones', 'resnet-18')
    assert parse(capsys.readouterr().out) == rows
    # Runs that do not fit are found before any other, and nothing is written.
    config = (tmp_path / 'out/retinanet_resnet-18.py').read_text()
    other = ['--detectors', 'faster_rcnn']
    changed = ['--epochs', 3]
    sentence = fail('demos/own_data', *arguments, *changed, monkeypatch=monkeypatch)
    assert 'vanillanet-6/0 (another config: ' in sentence and 'end=2 instead of end=3' in sentence
    change(path, 'annotations', 0, bbox=[9, 9, 9, 9], area=81)
    sentence = fail('demos/own_data', *arguments, *other, monkeypatch=monkeypatch)
    assert 'retinanet_vanillanet-6/0 (other data), ' in sentence
    assert (tmp_path / 'out/retinanet_resnet-18.py').read_text() == config
    assert not (tmp_path / 'out/faster_rcnn_resnet-18.py').exists()
    folders = [path.name for path in (tmp_path / 'out').glob('*/*') if path.is_dir()]
    assert sorted(folders) == ['0', '0', '1', '1']
