"""Detectors of mmdet's zoo with our backbone: make test runs some of them, make test-zoo all."""

import math

import pytest
import torch
from helpers.networks import randomize
from helpers.pairs import zip_equal
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.dataset import pseudo_collate
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmvanilla import switch_to_deploy
from mmvanilla.config import nested_dicts

# Config in mmdet -> the stages of ours that have the strides of its own backbone's stages. ResNet
# numbers its stages as we do; CSPDarknet and CSPNeXt also count their stem.
DETECTORS = {
    # one-stage
    'retinanet/retinanet_r50_fpn_1x_coco': (0, 1, 2, 3),
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco': (0, 1, 2, 3),
    'atss/atss_r50_fpn_1x_coco': (0, 1, 2, 3),
    'gfl/gfl_r50_fpn_1x_coco': (0, 1, 2, 3),
    'tood/tood_r50_fpn_1x_coco': (0, 1, 2, 3),
    'yolox/yolox_tiny_8xb8-300e_coco': (1, 2, 3),
    'rtmdet/rtmdet_tiny_8xb32-300e_coco': (1, 2, 3),
    'centernet/centernet_r18_8xb16-crop512-140e_coco': (3,),
    # two-stage
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco': (0, 1, 2, 3),
    'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco': (0, 1, 2, 3),
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco': (0, 1, 2, 3),
    # queries
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco': (1, 2, 3),
    'dino/dino-4scale_r50_8xb2-12e_coco': (1, 2, 3),
    'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco': (0, 1, 2, 3),
    # masks, and panoptic segmentation
    'solo/solo_r50_fpn_1x_coco': (0, 1, 2, 3),
    'solov2/solov2_r50_fpn_1x_coco': (0, 1, 2, 3),
    'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance': (0, 1, 2, 3),
    'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco': (0, 1, 2, 3),
}
# Some of each kind, among them those that need most from a backbone.
REPRESENTATIVE = (
    *('retinanet', 'rtmdet', 'centernet', 'faster_rcnn', 'deformable_detr', 'condinst'),
)
SIDES = {'dino': 256}  # its maps need as many places as it has queries; others use 128
# Keeps the low scores that heads predict when they have hardly trained.
THRESHOLDS = dict(score_thr=0.0, filter_thr=0.0)
MASK_THRESHOLDS = {'solo': 0.01}  # the initial value of its masks; others keep their threshold
# Untrained, these amplify rounding errors to pixels and percents, or choose differently among
# almost equal scores. So their backbones are compared in float64.
FLOAT64 = ('faster_rcnn', 'cascade_rcnn', 'mask_rcnn', 'sparse_rcnn', 'solov2', 'dino')


def plug_in(cfg, out_indices):
    """Replaces the backbone and the neck's channels, and nothing else."""
    cfg.model.backbone = dict(
        type='mmvanilla.VanillaNet', arch='6', widen_factor=1 / 16, out_indices=out_indices
    )
    channels = MODELS.build(cfg.model.backbone).out_channels
    cfg.model.neck.in_channels = list(channels) if len(channels) > 1 else channels[0]


def make_batch(cfg, side):
    """Two images with boxes, and with masks and maps if the config loads them."""
    torch.manual_seed(0)
    transforms = list(nested_dicts(cfg.train_dataloader))
    panoptic = any(t.get('type') == 'LoadPanopticAnnotations' for t in transforms)
    batch = demo_mm_inputs(
        2,
        [(3, side, side)] * 2,
        num_items=[3, 2],
        with_mask=panoptic or any(t.get('with_mask') for t in transforms),
        with_semantic=panoptic,
    )
    return [dict(inputs=i, data_samples=s) for i, s in zip(batch['inputs'], batch['data_samples'])]


def train(cfg, data, work_dir):
    """Trains three iterations, in which λ rises to 1.

    Returns the model, the logged scalars, and the keys of the backbone's weights that changed.
    """
    runner = Runner(
        cfg.model,
        str(work_dir),
        train_dataloader=DataLoader(data * 3, batch_size=2, collate_fn=pseudo_collate),
        train_cfg=dict(by_epoch=False, max_iters=3),
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=1e-3), clip_grad=dict(max_norm=1, error_if_nonfinite=True)
        ),
        custom_hooks=[dict(type='mmvanilla.DeepTrainingHook', by_epoch=False, decay_iters=2)],
        default_scope='mmdet',
        randomness=dict(seed=0),
        experiment_name=work_dir.name,
        log_level='WARNING',
    )
    before = {name: value.clone() for name, value in runner.model.backbone.state_dict().items()}
    runner.train()
    after = runner.model.backbone.state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    logged = {
        key[len('train/') :]: list(buffer.data[0])
        for key, buffer in runner.message_hub.log_scalars.items()
    }
    return runner.model, logged, moved


def compute_backbone_in_float64(model):
    """Keeps the backbone's rounding errors out of the comparison of forms."""
    backbone = model.backbone.double()
    backbone.register_forward_pre_hook(lambda _, images: tuple(x.double() for x in images))
    backbone.register_forward_hook(lambda _, images, features: tuple(x.float() for x in features))


@torch.no_grad()
def predict(model, data):
    return model.test_step(pseudo_collate(data))


def are_same(got, expected, side):
    """Compares maps; or boxes (to 1e-3 pixel), scores (to 1e-4), labels and masks in any order."""
    if 'pred_panoptic_seg' in expected:
        maps = [sample.pred_panoptic_seg.sem_seg for sample in (got, expected)]
        assert len(maps[1].unique()) > 1
        return (maps[0] != maps[1]).float().mean() < 1e-3
    got, expected = got.pred_instances, expected.pred_instances
    assert len(expected) > 0
    if len(got) != len(expected):
        return False
    # Inside the image: some detectors do not clip boxes that they have hardly learnt.
    inside = [instances.bboxes.clamp(0, side) for instances in (got, expected)]
    boxes = (inside[0][:, None] - inside[1]).abs().amax(-1)  # (N, N)
    scores = (got.scores[:, None] - expected.scores).abs()
    same = (boxes < 1e-3) & (scores < 1e-4) & (got.labels[:, None] == expected.labels)
    if 'masks' in expected:
        different = got.masks[:, None] != expected.masks
        same &= different.float().mean((-1, -2)) < 1e-3
    return same.any(0).all() and same.any(1).all()


@pytest.mark.parametrize(
    ('config', 'out_indices'),
    [
        pytest.param(
            *item,
            id=item[0].split('/')[0],
            marks=[] if item[0].split('/')[0] in REPRESENTATIVE else pytest.mark.zoo,
        )
        for item in DETECTORS.items()
    ],
)
def test_trains_predicts_and_fuses(config, out_indices, tmp_path):
    init_default_scope('mmdet')
    cfg = get_config(f'mmdet::{config}.py')
    name = config.split('/')[0]
    plug_in(cfg, out_indices)
    for part in nested_dicts(cfg.model.get('test_cfg')):
        thresholds = dict(THRESHOLDS, mask_thr=MASK_THRESHOLDS.get(name, part.get('mask_thr')))
        part.update({key: value for key, value in thresholds.items() if key in part})
    side = SIDES.get(name, 128)
    model, logged, moved = train(cfg, make_batch(cfg, side), tmp_path)
    assert logged['lambda'] == [0, 0.5, 1]
    assert all(map(math.isfinite, logged['loss'] + logged['grad_norm']))
    assert 'stem.conv.conv1.weight' in moved
    assert list(tmp_path.glob('*_deploy.pth'))

    randomize(model.backbone)
    model.eval()
    if name in FLOAT64:
        compute_backbone_in_float64(model)
    fused = switch_to_deploy(model)
    wrong = switch_to_deploy(model)
    wrong.backbone.stem.act.conv.weight.data[::2] *= 1.02  # must be noticed: tolerances are tight
    data = make_batch(cfg, side)
    for samples in zip_equal(*(predict(form, data) for form in (model, fused, wrong))):
        assert are_same(samples[1], samples[0], side)
        assert not are_same(samples[2], samples[0], side)
