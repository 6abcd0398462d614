"""ImageNet-ReaL: accuracy against the reassessed labels of ImageNet's validation images."""

import json
import logging
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from ..errors import UsageError
from ..registry import METRICS, register

SOURCE = 'https://github.com/google-research/reassessed-imagenet'


@register(METRICS)
class ImageNetReaL(BaseMetric):
    """Top-1 accuracy, in percent, against the labels of "Are we done with ImageNet?".

    A prediction is right if it is one of the image's labels; images without labels do not count
    (https://arxiv.org/abs/2006.07159). It is used in an evaluator beside mmpretrain's ``Accuracy``,
    on the predictions of mmpretrain's classifiers.

    Args:
        labels: Path of ``real.json``, a list of label lists in the order of the validation images'
            numbers. If the file is missing, a warning says so and there is no result.
        collect_device: As in mmengine's BaseMetric.

    Raises:
        UsageError: if the file is not ``real.json``, or an image's name has no number.
    """

    default_prefix = 'real'

    def __init__(
        self, labels: str = 'data/imagenet/real.json', collect_device: str = 'cpu'
    ) -> None:
        super().__init__(collect_device=collect_device)
        self.labels = None
        if not Path(labels).exists():
            print_log(
                f'ImageNet-ReaL accuracy is left out: {labels} does not exist; get real.json from '
                f'{SOURCE}.',
                'current',
                logging.WARNING,
            )
            return
        try:
            self.labels = [frozenset(each) for each in json.loads(Path(labels).read_text())]
        except (ValueError, TypeError):
            raise UsageError(
                f'{labels} is not a list of label lists: get real.json from {SOURCE}.'
            ) from None

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Records whether the prediction is one of the image's labels, None if it has none.

        One result per image, since mmengine merges the results of processes by counting images.
        """
        if self.labels is None:
            self.results += [None] * len(data_samples)
            return
        for sample in data_samples:
            name = Path(sample['img_path']).name
            number = re.fullmatch(r'ILSVRC2012_val_(\d{8})\.\w+', name)
            if number is None or not 0 < int(number[1]) <= len(self.labels):
                raise UsageError(
                    f'{name} is not a validation image of ImageNet (ILSVRC2012_val_00000001.JPEG '
                    f'to {len(self.labels)}): keep the original names, or remove ImageNetReaL from '
                    'the evaluator.'
                )
            labels = self.labels[int(number[1]) - 1]
            right = int(sample['pred_score'].argmax()) in labels
            self.results.append(right if labels else None)

    def compute_metrics(self, results: List[Optional[bool]]) -> Dict[str, float]:
        """``top1``, in percent; empty if no image has labels."""
        labelled = [right for right in results if right is not None]
        return dict(top1=100 * sum(labelled) / len(labelled)) if labelled else {}
