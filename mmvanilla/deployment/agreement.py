"""Whether an exported network gives what torch's does: box by box, image by image, map by map."""

import copy
from typing import List, NamedTuple, Sequence

import torch
from mmengine.dataset import pseudo_collate
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

NUM_IMAGES = 10  # of the test data
SAME_CORNERS = 0.05  # pixels


class Tolerance(NamedTuple):
    """How far results of a precision may be from torch's in float32."""

    score: float
    overlap: float  # of boxes and of masks, as intersection over union
    share: float  # of boxes that must agree: suppression turns rounding into another choice
    other_share: float  # of images, or of pixels


TOLERANCES = dict(
    float32=Tolerance(1e-3, 0.99, 0.95, 0.99), bfloat16=Tolerance(0.1, 0.8, 0.9, 0.95)
)


def predict(network: nn.Module, samples: Sequence[dict]) -> List[BaseDataElement]:
    """The predictions of a network of OpenMMLab on data of its test pipeline."""
    with torch.inference_mode():
        return network.test_step(pseudo_collate(copy.deepcopy(list(samples))))


class Agreement(NamedTuple):
    """How many results agree, of how many, what they are, and whether that is enough."""

    agree: int
    number: int
    kind: str
    is_enough: bool

    def __str__(self) -> str:
        return f'{self.agree} of {self.number} {self.kind} agree with torch'


def compare(
    expected: Sequence[BaseDataElement], got: Sequence[BaseDataElement], tolerance: Tolerance
) -> Agreement:
    """Compares predictions of two networks on the same images.

    Boxes are looked for in both directions. A box whose score is so low that rounding could have
    kept it out does not count: near the lowest of all, or of an image that is full.
    """
    counts = torch.zeros(2, dtype=torch.int64)
    kind = 'images'
    found = [each.pred_instances for each in (*expected, *got) if 'pred_instances' in each]
    lowest = min((each.scores.min().item() for each in found if len(each)), default=0.0)
    full = max(map(len, found), default=0)
    for one, other in zip(expected, got):
        if 'pred_instances' in one:
            kind = 'boxes'
            for pair in ((one, other), (other, one)):
                instances = [each.pred_instances for each in pair]
                counts += _compare_boxes(*instances, tolerance, lowest, full)
        elif 'pred_sem_seg' in one:
            kind = 'pixels'
            maps = [each.pred_sem_seg.data for each in (one, other)]
            same = maps[0] == maps[1] if maps[0].shape == maps[1].shape else torch.zeros(1)
            counts += torch.tensor([same.sum(), maps[0].numel()])
        else:
            near = (one.pred_score - other.pred_score).abs().max() <= tolerance.score
            counts += torch.tensor([int(near), 1])
    agree, number = counts.tolist()
    share = tolerance.share if kind == 'boxes' else tolerance.other_share
    return Agreement(agree, number, kind, agree >= share * number)


def _compare_boxes(
    one: BaseDataElement, other: BaseDataElement, tolerance: Tolerance, lowest: float, full: int
) -> Tensor:
    """How many boxes have a counterpart, and how many should have one, (2,)."""
    if len(one) == 0:
        return torch.zeros(2, dtype=torch.int64)
    same = (one.labels[:, None] == other.labels) & (_overlaps(one, other) >= tolerance.overlap)
    same &= (one.scores[:, None] - other.scores).abs() <= tolerance.score
    lowest = one.scores.min().item() if len(one) == full else lowest
    counts = one.scores > lowest + tolerance.score
    return torch.stack([(same.any(1) & counts).sum(), counts.sum()])


def _overlaps(one: BaseDataElement, other: BaseDataElement) -> Tensor:
    """The overlap of each box, and of its mask if there are masks, with each other, (n, m)."""
    from torchvision.ops import box_iou

    overlaps = box_iou(one.bboxes, other.bboxes)
    corners = (one.bboxes[:, None] - other.bboxes).abs().amax(-1)
    overlaps = torch.where(corners <= SAME_CORNERS, 1.0, overlaps)  # also without an area
    if 'masks' in one:
        flat, others = (torch.as_tensor(x.masks).flatten(1).float() for x in (one, other))
        inside = flat @ others.T
        either = flat.sum(1)[:, None] + others.sum(1) - inside
        overlaps = torch.minimum(overlaps, torch.where(either > 0, inside / either, 1.0))
    return overlaps


def crop(sample: dict, divisor: int) -> dict:
    """A sample whose image is smaller and of another shape.

    Its sides stay multiples of 32 if the divisor is 1; if it is larger, images are padded to
    multiples of it, and the sides are no multiples of anything.
    """
    sample = copy.deepcopy(sample)
    height, width = sample['inputs'].shape[1:]
    odd = 0 if divisor == 1 else 7
    height = max(height * 5 // 8 // 32 * 32, min(height, 64)) - odd
    width = max(width * 3 // 4 // 32 * 32, min(width, 64)) - odd
    sample['inputs'] = sample['inputs'][:, :height, :width]
    shape = dict(img_shape=(height, width), ori_shape=(height, width), pad_shape=(height, width))
    sample['data_samples'].set_metainfo(dict(shape, scale_factor=(1.0, 1.0)))
    return sample
