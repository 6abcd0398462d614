import filecmp
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.programs import ROOT, run_python

from mmvanilla import UsageError

SCRIPT = 'tools/dataset_converters/digits_to_coco.py'


@pytest.fixture(scope='module')
def generator():
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location('digits_to_coco', ROOT / SCRIPT)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_same_seed_same_files(digits, tmp_path):
    run_python(SCRIPT, tmp_path / 'again', '--num-train=16', '--num-val=4')
    run_python(SCRIPT, tmp_path / 'other', '--num-train=16', '--num-val=4', '--seed=1')
    files = [p.relative_to(digits) for p in digits.rglob('*') if p.is_file()]
    assert len(files) == 2 * (16 + 4) + 2
    assert filecmp.cmpfiles(digits, tmp_path / 'again', files, shallow=False)[0] == files
    assert not filecmp.cmpfiles(digits, tmp_path / 'other', files, shallow=False)[0]


@pytest.mark.parametrize('split', ['train2017', 'val2017'])
def test_annotations(digits, split):
    coco = json.loads((digits / f'annotations/instances_{split}.json').read_text())
    assert [c['name'] for c in coco['categories']][:3] == ['zero', 'one', 'two']
    boxes = {image['id']: [] for image in coco['images']}
    maps = {image['id']: np.zeros((256, 256), np.uint8) for image in coco['images']}
    for annotation in coco['annotations']:
        x, y, w, h = annotation['bbox']
        assert 0 <= x and 0 <= y and x + w <= 256 and y + h <= 256 and 12 <= h <= 76
        mask = np.zeros((256, 256), np.uint8)
        for polygon in annotation['segmentation']:
            cv2.fillPoly(mask, [np.array(polygon, int).reshape(-1, 2)], 1)
        rows, columns = np.nonzero(mask)
        assert [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1] == [x, y, w, h]
        assert annotation['area'] == mask.sum()
        boxes[annotation['image_id']].append(annotation['bbox'])
        maps[annotation['image_id']] |= mask
    for image in coco['images']:
        pixels = cv2.imread(str(digits / split / image['file_name']))
        assert pixels.shape == (256, 256, 3) == (image['height'], image['width'], 3)
        assert 1 <= len(boxes[image['id']]) <= 5
        stem = Path(image['file_name']).stem
        semantic = cv2.imread(str(digits / f'stuffthingmaps/{split}/{stem}.png'), -1)
        assert (semantic == maps[image['id']]).all()


def test_boxes_overlap_little(digits, generator):
    coco = json.loads((digits / 'annotations/instances_train2017.json').read_text())
    for one in coco['annotations']:
        for other in coco['annotations']:
            if one['id'] < other['id'] and one['image_id'] == other['image_id']:
                assert generator.overlap(one['bbox'], other['bbox']) <= generator.MAX_OVERLAP


def test_train_and_validation_digits_are_disjoint(generator, tmp_path, monkeypatch):
    used = {}

    def record(out, split, count, scans, labels, rng):
        used[split] = {scan.tobytes() for scan in scans}
        out.mkdir(exist_ok=True)

    monkeypatch.setattr(generator, 'write_split', record)
    monkeypatch.setattr('sys.argv', ['digits_to_coco.py', str(tmp_path / 'digits')])
    generator.main()
    assert used['train2017'] and used['val2017']
    assert not used['train2017'] & used['val2017']


def test_existing_folder_is_left_alone(digits):
    result = run_python(SCRIPT, digits, check=False)
    assert result.returncode != 0
    assert result.stdout.strip().endswith('remove it first, or choose another folder.')


def test_nothing_else_is_touched(generator, tmp_path):
    (tmp_path / 'out.tmp').mkdir()
    with pytest.raises(KeyboardInterrupt):
        with generator.new_folder(tmp_path / 'out') as folder:
            (folder / 'half.jpg').touch()
            raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ['out.tmp']
    with generator.new_folder(tmp_path / 'out') as folder:
        (folder / 'whole.jpg').touch()
    assert (tmp_path / 'out/whole.jpg').exists()
    (tmp_path / 'file').touch()
    with pytest.raises(UsageError, match='file is a file'):
        with generator.new_folder(tmp_path / 'file/out'):
            pass
