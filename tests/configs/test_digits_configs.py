"""The configs of the demos, for a few iterations: they train, evaluate and fuse."""

import pytest
from helpers.config_options import loader_options
from mmengine.fileio import load

LENGTHS = {
    'mask_rcnn_vanillanet-6_digits': ['train_cfg.max_epochs=1', 'custom_hooks.0.decay_epochs=0'],
    'upernet_vanillanet-6_digits': [
        *('train_cfg.max_iters=4', 'train_cfg.val_interval=4', 'custom_hooks.0.decay_iters=2'),
        'default_hooks.checkpoint.interval=4',
    ],
}


@pytest.mark.parametrize(
    ('name', 'checkpoint', 'metrics'),
    [
        ('mask_rcnn_vanillanet-6_digits', 'epoch_1', ('coco/bbox_mAP', 'coco/segm_mAP')),
        ('upernet_vanillanet-6_digits', 'iter_4', ('mIoU',)),
    ],
)
def test_trains_evaluates_and_fuses(name, checkpoint, metrics, digits, run_tool, tmp_path):
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
