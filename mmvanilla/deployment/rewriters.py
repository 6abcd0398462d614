"""What mmdeploy's exporter gets from us: parts of networks as they compute, without its short cuts.

mmdeploy gives all classes of a proposal the box of its likeliest class, suppresses proposals across
levels and drops those of a score below 0.05, cuts boxes where the padding of a batch ends, and
pools to a fixed size by windows of equal size. Each changes boxes or maps. Importing this module
replaces those rewriters.
"""

from typing import Any, Callable, List, Optional, Tuple, Union

import torch
from mmdeploy.core import FUNCTION_REWRITER, SYMBOLIC_REWRITER
from torch import Tensor
from torch.nn.modules.utils import _pair
from torch.onnx import symbolic_helper

BACKENDS = ('onnxruntime', 'torchscript')
SIZES: List[Tensor] = []  # width and height of each image of the batch that is traced, (N,) each
ROUNDING = 1e-4  # of 0, where the file itself normalizes
NONE = -1.0  # a score below every threshold
ALL = 10_000  # of a class; TorchScript counts the boxes of all images of a batch together


def rewrites(path: str, *backends: str) -> Callable:
    """Registers a function for what mmdeploy's exporter is to use in place of another."""

    def register(function: Callable) -> Callable:
        for backend in backends:
            FUNCTION_REWRITER.register_rewriter(path, backend)(function)
        return function

    return register


@rewrites('mmdet.models.detectors.single_stage.SingleStageDetector.extract_feat', *BACKENDS)
@rewrites('mmdet.models.detectors.two_stage.TwoStageDetector.extract_feat', *BACKENDS)
def extract_features(self: Any, images: Tensor) -> Tuple[Tensor, ...]:
    """The features; remembers the sizes of the images, without what they are padded with.

    That is 0 after normalization. Without normalization it cannot be told from black.
    """
    values = images.abs().amax(1)  # (N, H, W)
    if not getattr(self.data_preprocessor, '_enable_normalize', False):
        values = torch.ones_like(values)
    SIZES[:] = (_length(values.amax(dim)) for dim in (1, 2))
    features = self.backbone(images)
    return self.neck(features) if self.with_neck else features


def _length(values: Tensor) -> Tensor:
    """One more than the last position of what is not 0, (N, length) -> (N,)."""
    return ((values > ROUNDING) * torch.ones_like(values).cumsum(1)).amax(1)


@rewrites('mmdeploy.codebase.mmdet.deploy.utils.clip_bboxes', *BACKENDS)
def cut_boxes(
    x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor, max_shape: Any
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Corners, (N, n) or (N, n, classes) each, within their images."""
    sizes = SIZES or max_shape[::-1]
    width, height = (x.reshape(-1, *[1] * (x1.dim() - 1)).to(x1.dtype) for x in sizes)
    x1, x2 = (torch.minimum(x.clamp(min=0), width) for x in (x1, x2))
    y1, y2 = (torch.minimum(y.clamp(min=0), height) for y in (y1, y2))
    return x1, y1, x2, y2


@rewrites('mmdet.models.dense_heads.rpn_head.RPNHead.predict_by_feat', *BACKENDS)
def choose_proposals(
    self: Any,
    cls_scores: List[Tensor],
    bbox_preds: List[Tensor],
    score_factors: Optional[List[Tensor]] = None,
    batch_img_metas: Optional[List[dict]] = None,
    cfg: Any = None,
    **kwargs: Any,
) -> Tuple[Tensor, Tensor]:
    """Proposals with scores, (N, n, 5), suppressed within each level, and their levels, (N, n)."""
    from mmdeploy.codebase.mmdet.deploy import gather_topk
    from mmdeploy.mmcv.ops import multiclass_nms

    cfg = cfg or self.test_cfg
    num_images = cls_scores[0].shape[0]
    sizes = [x.shape[-2:] for x in cls_scores]
    found = []
    for level, anchors in enumerate(self.prior_generator.grid_priors(sizes, device='cpu')):
        scores = cls_scores[level].permute(0, 2, 3, 1)
        scores = scores.reshape(num_images, -1, self.cls_out_channels)
        scores = scores.sigmoid() if self.use_sigmoid_cls else scores.softmax(-1)[..., :1]
        deltas = bbox_preds[level].permute(0, 2, 3, 1).reshape(num_images, -1, 4)
        best = dict(inds=scores.squeeze(-1).topk(cfg.nms_pre).indices, batch_size=num_images)
        deltas, scores = gather_topk(deltas, scores, is_batched=True, **best)
        anchors = gather_topk(anchors[None], is_batched=False, **best)
        found.append((anchors, deltas, scores, torch.full_like(scores, level)))
    anchors, deltas, scores, levels = (torch.cat(each, 1) for each in zip(*found))
    boxes = self.bbox_coder.decode(anchors, deltas, max_shape=batch_img_metas[0]['img_shape'])
    is_large = (boxes[..., 2:] - boxes[..., :2] > cfg.min_bbox_size).all(-1, keepdim=True)
    of_level = levels == torch.arange(len(sizes), dtype=levels.dtype)
    proposals, levels = multiclass_nms(
        boxes,
        torch.where(of_level & is_large, scores, NONE),  # (N, n, levels)
        max_output_boxes_per_class=ALL,
        iou_threshold=cfg.nms.iou_threshold,
        score_threshold=0.0,
        keep_top_k=cfg.max_per_img,
    )
    return proposals * (proposals[..., 4:] > 0), levels  # what fills up is empty


@rewrites('mmdet.models.roi_heads.bbox_heads.bbox_head.BBoxHead.predict_by_feat', *BACKENDS)
def choose_boxes(
    self: Any,
    rois: Tensor,
    cls_scores: Tensor,
    bbox_preds: Tensor,
    batch_img_metas: List[dict],
    rcnn_test_cfg: Any,
    rescale: bool = False,
) -> Tuple[Tensor, Tensor]:
    """Boxes with scores, (N, n, 5), and their classes, (N, n); each class of a roi has its box."""
    from mmdeploy.mmcv.ops import multiclass_nms

    boxes = self.bbox_coder.decode(
        rois[..., 1:], bbox_preds, max_shape=batch_img_metas[0]['img_shape']
    )
    scores = (
        self.loss_cls.get_activation(cls_scores)
        if self.custom_cls_channels
        else cls_scores.softmax(-1)
    )[..., : self.num_classes]  # (N, n, classes)
    is_proposal = (rois[..., 3:5] > rois[..., 1:3]).all(-1, keepdim=True)
    scores = torch.where(is_proposal, scores, NONE)
    if not self.reg_class_agnostic:
        own = torch.eye(self.num_classes, dtype=torch.bool)
        scores = torch.where(own, scores[..., None], NONE).flatten(1, 2)  # (N, n classes, classes)
        boxes = boxes.reshape(boxes.shape[0], -1, 4)  # (N, n classes, 4)
    return multiclass_nms(
        boxes,
        scores,
        max_output_boxes_per_class=ALL,
        iou_threshold=rcnn_test_cfg.nms.iou_threshold,
        score_threshold=rcnn_test_cfg.score_thr,
        keep_top_k=rcnn_test_cfg.max_per_img,
    )


@SYMBOLIC_REWRITER.register_symbolic('grid_sampler', is_pytorch=True, backend='onnxruntime')
def sample_grid(
    graph: Any, x: Any, grid: Any, mode: Any, padding: Any, corners: Any = False
) -> Any:
    """ONNX's own operator (since 16), in place of one that plain onnxruntime does not know."""
    mode, padding, corners = (
        symbolic_helper._maybe_get_const(v, 'i') for v in (mode, padding, corners)
    )
    return graph.op(
        'GridSample',
        x,
        grid,
        mode_s=('bilinear', 'nearest', 'bicubic')[mode],
        padding_mode_s=('zeros', 'border', 'reflection')[padding],
        align_corners_i=int(corners),
    )


@rewrites('torch.nn.functional.adaptive_avg_pool2d', 'onnxruntime')
def average_windows(x: Tensor, output_size: Union[int, Tuple[int, int]]) -> Tensor:
    """Pools maps of any size, (N, C, H, W), to a fixed one: ONNX has no operator for it."""
    height, width = _pair(output_size)
    for dim, size in ((-2, height), (-1, width)):
        first, last, length = _windows(x, dim, size)
        inside = (first <= torch.arange(length)) & (torch.arange(length) < last)  # (size, length)
        weights = inside.to(x.dtype) / (last - first).to(x.dtype)
        x = weights @ x if dim == -2 else x @ weights.T
    return x


@rewrites('torch.nn.functional.adaptive_max_pool2d', 'onnxruntime')
def largest_of_windows(
    x: Tensor, output_size: Union[int, Tuple[int, int]], return_indices: bool = False
) -> Tensor:
    """As ``average_windows``, the largest value of each window."""
    height, width = _pair(output_size)
    for dim, size in ((-2, height), (-1, width)):
        first, last, length = _windows(x, dim, size)
        longest = torch.arange(length // size + 2)
        inside = torch.minimum(first + longest, last - 1)  # (size, longest), the last one repeated
        x = x[..., inside, :].amax(-2) if dim == -2 else x[..., inside].amax(-1)
    return x


def _windows(x: Tensor, dim: int, size: int) -> Tuple[Tensor, Tensor, Tensor]:
    """Where each window begins and ends, (size, 1), along a dimension, and its length."""
    length = torch._shape_as_tensor(x)[dim]
    number = torch.arange(size)[:, None]
    first = (number * length).div(size, rounding_mode='floor')
    last = ((number + 1) * length + size - 1).div(size, rounding_mode='floor')
    return first, last, length
