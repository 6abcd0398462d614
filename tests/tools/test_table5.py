"""Table 5 of the paper: sizes of its four models, and the tool that prints ours beside it."""

import copy
import json
import sys
from contextlib import nullcontext

import pytest
import table5
from helpers.narrow_detector import narrow_options
from mmengine.registry import MODELS, init_default_scope

from mmvanilla import UsageError
from mmvanilla.compatibility import meta_device

MASK_RCNN = 'configs/mask_rcnn_vanillanet13.py'


def test_parameters():
    """Sizes are the paper's (n = 3) or the authors' (n = 4), to one unit of the last digit."""
    init_default_scope('mmdet')
    for row in table5.PUBLISHED:
        cfg = table5.make_config(row)
        if row['series number']:
            cfg.model.backbone.deploy = True
        # Swin computes with numbers while it is built, so it cannot be on the meta device.
        with meta_device() if row['series number'] else nullcontext():
            count = sum(p.numel() for p in MODELS.build(cfg.model).parameters()) / 1e6
        assert abs(count - float(row['parameters (M)'])) <= 0.1, (row, count)


@pytest.mark.slow
def test_macs():
    """MACs are within 1% of the published numbers."""
    for row in table5.PUBLISHED:
        found = table5.count(table5.make_config(row), table5.PAPER_SHAPE, deploy=True)
        # The published count of this one includes attention's products: 266.6, or 263.4 without.
        whole = row['config'] == 'configs/coco/mask_rcnn_swin-t_coco.py'
        macs = (found['macs'] if whole else table5.layer_macs(found)) / 1e9
        assert macs == pytest.approx(float(row['FLOPs (G)']), rel=0.01), row


@pytest.fixture(scope='module')
def narrow_configs(digits):
    init_default_scope('mmdet')
    options = {
        'model.backbone': dict(widen_factor=1 / 64),
        'test_dataloader.dataset.data_root': f'{digits}/',
        'test_evaluator.ann_file': str(digits / 'annotations/instances_val2017.json'),
    }
    return [table5.make_config(row, options) for row in table5.PUBLISHED]


@pytest.mark.parametrize(
    ('config', 'file', 'message'),
    [
        ('retinanet_swin-t_coco', 'epoch_3.pth', 'its series number is 4'),
        (
            'mask_rcnn_vanillanet13',
            'epoch_3_deploy.pth',
            'does not fit MaskRCNN: missing: ',
        ),
        ('retinanet_vanillanet13', 'none.pth', 'none.pth does not exist'),
    ],
)
def test_checkpoints_of_others(config, file, message, narrow_configs, trained):
    with pytest.raises(UsageError, match=message):
        table5.find_rows([(config, str(trained / file))], narrow_configs)


def test_table(trained, digits, monkeypatch, capsys, tmp_path):
    """Prints one row, for a narrow detector, with FPS and the AP of its checkpoint."""
    row = dict(zip(table5.PUBLISHED[0], [table5.PUBLISHED[2]['config'], *'41234', '']))
    monkeypatch.setattr(table5, 'PUBLISHED', [row])
    argv = ['table5.py', '--fps-shape', '64', '96', '--rounds', '2', '--precision', 'bfloat16']
    argv += ['--checkpoint', 'retinanet_vanillanet13', str(trained / 'epoch_3_deploy.pth')]
    monkeypatch.setattr(sys, 'argv', argv + narrow_options(digits))
    monkeypatch.chdir(tmp_path)
    table5.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('| ')]
    row = dict(zip(*([cell.strip() for cell in lines[i].strip('|').split('|')] for i in (0, 2))))
    assert row['config'] == 'retinanet_vanillanet13' and row['series number'] == '4'
    assert float(row['MACs (G): layers']) < float(row['all'])
    assert float(row['FPS']) > 0 and 0 < float(row['post-processing (%)']) < 100
    (result,) = tmp_path.glob('work_dirs/table5/*/*.json')
    assert row['box AP'] == '4'  # the last column of this name is the published one
    measured = 100 * json.loads(result.read_text())['coco/bbox_mAP']
    assert [cell.strip() for cell in lines[2].strip('|').split('|')][7] == f'{measured:.1f}'


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_boxes_and_masks_in_other_precisions(precision, narrow_configs):
    """All that follows the heads is computed in float32, of which the time is measured."""
    row = [row['config'] for row in table5.PUBLISHED].index(MASK_RCNN)
    config = copy.deepcopy(narrow_configs[row])
    config.model.neck.in_channels = [channels // 64 for channels in config.model.neck.in_channels]
    config.model.test_cfg.rpn.max_per_img = 4
    config.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=2)  # finds boxes
    case = table5.Case((3, 64, 96), 'detection', 'cpu', precision)
    (fps,), (part,) = table5.measure_fps([table5.make_detector(config, case)], 1, case)
    assert fps > 0 and 0 < part < 1
