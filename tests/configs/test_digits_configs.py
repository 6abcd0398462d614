"""The configs of the demos train, evaluate and fuse in a few iterations; the demos draw that."""

import cv2
import detection
import pytest
import segmentation
from helpers.config_options import loader_options, read_config
from helpers.programs import ROOT
from mmdet.registry import DATASETS
from mmengine.fileio import load
from mmengine.registry import init_default_scope

LENGTHS = {
    'mask_rcnn_vanillanet-6_digits': ['train_cfg.max_epochs=1', 'custom_hooks.0.decay_epochs=0'],
    'upernet_vanillanet-6_digits': [
        *('train_cfg.max_iters=4', 'train_cfg.val_interval=4', 'custom_hooks.0.decay_iters=2'),
        'default_hooks.checkpoint.interval=4',
    ],
}


def draw_masks(fused, config, options, digits, path, monkeypatch):
    """As tools/demos/detection.py draws them: two images, truth and prediction side by side."""
    monkeypatch.setattr(detection, 'NUM_PICTURES', 2)
    init_default_scope('mmdet')
    dataset = DATASETS.build(read_config(ROOT / config, options[1:]).val_dataloader.dataset)
    detection.draw_predictions(detection.load_detector(fused), dataset, path)
    return 262, 2 * (2 * 256 + 6)


def draw_segments(fused, config, options, digits, path, monkeypatch):
    """As tools/demos/segmentation.py draws them: two images, each with truth and prediction."""
    monkeypatch.setattr(segmentation, 'DATA', digits)
    segmentation.draw_predictions(fused, sorted(digits.glob('val2017/*.jpg'))[:2], path)
    return 262, 2 * (3 * 256 + 6)


@pytest.mark.parametrize(
    ('name', 'checkpoint', 'metrics', 'draw'),
    [
        (
            'mask_rcnn_vanillanet-6_digits',
            'epoch_1',
            ('coco/bbox_mAP', 'coco/segm_mAP'),
            draw_masks,
        ),
        ('upernet_vanillanet-6_digits', 'iter_4', ('mIoU',), draw_segments),
    ],
)
def test_trains_evaluates_and_fuses(
    name, checkpoint, metrics, draw, digits, run_tool, monkeypatch, tmp_path
):
    config = f'configs/digits/{name}.py'
    options = ['--cfg-options', *LENGTHS[name]]
    options += loader_options(f'dataset.data_root={digits}/')
    if name.startswith('mask'):
        annotations = digits / 'annotations/instances_val2017.json'
        options += [f'{part}_evaluator.ann_file={annotations}' for part in ('val', 'test')]
    run_tool('tools/train.py', config, '--work-dir', tmp_path / 'train', *options)
    found = []
    for form, args in (('training', []), ('deploy', ['--deploy'])):
        file = tmp_path / f'train/{checkpoint}{"_deploy" if args else ""}.pth'
        run_tool('tools/test.py', config, file, '--work-dir', tmp_path / form, *args, *options)
        (path,) = (tmp_path / form).glob('*/*.json')
        found.append([load(path)[metric] for metric in metrics])
    assert found[1] == pytest.approx(found[0], abs=1e-3)
    assert all(value >= 0 for value in found[0])
    shape = draw(file, config, options, digits, tmp_path / 'a.png', monkeypatch)
    assert cv2.imread(str(tmp_path / 'a.png')).shape[:2] == shape
