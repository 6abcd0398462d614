"""What mmdeploy's exporter gets from us computes what mmdet and torch do."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope

pytest.importorskip('mmdeploy')
pytest.importorskip('mmdet')

from mmdet.registry import MODELS  # noqa: E402

from mmvanilla.deployment import rewriters  # noqa: E402

CODER = dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4)
METAS = [dict(img_shape=(64, 48))] * 2


def check(got, expected):
    """Asserts that boxes, (N, n, 5), and labels begin with those that mmdet finds."""
    for boxes, labels, wanted in zip(*got, expected):
        number = len(wanted)
        assert number > 10
        assert torch.equal(boxes[:number, :4], wanted.bboxes)
        assert torch.equal(boxes[:number, 4], wanted.scores)
        assert (boxes[number:, 4] <= 0).all()
        if wanted.labels.any():
            assert torch.equal(labels[:number], wanted.labels)


@pytest.mark.parametrize('sigmoid', [True, False])
@pytest.mark.parametrize('min_size', [0, 6])
def test_proposals(sigmoid, min_size):
    init_default_scope('mmdet')
    head = MODELS.build(
        dict(
            type='RPNHead',
            in_channels=4,
            feat_channels=4,
            anchor_generator=dict(
                type='AnchorGenerator', scales=[4], ratios=[0.5, 1.0, 2.0], strides=[4, 8]
            ),
            bbox_coder=dict(CODER, target_stds=[1.0] * 4),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=sigmoid),
        )
    )
    sizes = ((16, 12), (8, 6))
    scores = [torch.randn(2, 3 if sigmoid else 6, *size) for size in sizes]
    deltas = [torch.randn(2, 12, *size) / 2 for size in sizes]
    cfg = ConfigDict(
        nms_pre=100,
        max_per_img=100,
        nms=dict(type='nms', iou_threshold=0.7),
        min_bbox_size=min_size,
    )
    expected = head.predict_by_feat(scores, deltas, None, METAS, cfg)
    check(rewriters.choose_proposals(head, scores, deltas, None, METAS, cfg), expected)


@pytest.mark.parametrize('agnostic', [True, False])
def test_boxes(agnostic):
    init_default_scope('mmdet')
    head = MODELS.build(
        dict(
            type='Shared2FCBBoxHead',
            in_channels=4,
            fc_out_channels=8,
            num_classes=5,
            bbox_coder=dict(CODER, target_stds=[0.1, 0.1, 0.2, 0.2]),
            reg_class_agnostic=agnostic,
        )
    )
    corner = 40 * torch.rand(2, 40, 2)
    image = torch.arange(2.0)[:, None, None].expand(2, 40, 1)
    rois = torch.cat([image, corner, corner + 30 * torch.rand(2, 40, 2)], -1)
    scores = 2 * torch.randn(2, 40, 6)
    deltas = torch.randn(2, 40, 4 if agnostic else 20)
    cfg = ConfigDict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=50)
    args = (tuple(rois), tuple(scores), tuple(deltas), METAS, cfg)
    expected = head.predict_by_feat(*args)
    check(rewriters.choose_boxes(head, rois, scores, deltas, METAS, cfg), expected)


@pytest.mark.parametrize('size', [1, 2, 3, (3, 5)])
@pytest.mark.parametrize('shape', [(2, 3, 8, 8), (1, 2, 7, 13)])
def test_pooling(size, shape):
    x = torch.randn(shape)
    torch.testing.assert_close(
        rewriters.average_windows(x, size), F.adaptive_avg_pool2d(x, size), rtol=1e-5, atol=1e-6
    )
    assert torch.equal(rewriters.largest_of_windows(x, size), F.adaptive_max_pool2d(x, size))


def test_boxes_are_cut_at_their_images(monkeypatch):
    """The sizes are found in the batch, which is padded with 0."""
    images = torch.zeros(2, 3, 64, 64)
    images[0, :, :40, :50] = torch.randn(3, 40, 50)
    images[1, :, :64, :30] = torch.randn(3, 64, 30)
    sizes = [rewriters._length(images.abs().amax(1).amax(dim)) for dim in (1, 2)]
    assert [x.tolist() for x in sizes] == [[50, 30], [40, 64]]
    monkeypatch.setattr(rewriters, 'SIZES', sizes)
    for shape in ((2, 5), (2, 5, 3)):
        corners = rewriters.cut_boxes(*(60 * torch.ones(4, *shape)), None)
        for corner, expected in zip(corners, ([50, 30], [40, 60]) * 2):
            assert corner.flatten(1)[:, 0].tolist() == expected
