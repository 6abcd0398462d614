"""A config's test data: samples of it, and what networks score on it."""

import copy
import io
from contextlib import redirect_stdout
from tempfile import TemporaryDirectory
from typing import Dict, List

from mmengine.config import Config
from torch import nn

from ..errors import UsageError
from .running import build_runner, load_without_workers

# The metrics that count, by the ends of their names, and what a perfect one is.
METRICS = dict(bbox_mAP=1, segm_mAP=1, mAP=1, top1=100, mIoU=100)


class TestData:
    """The test data and evaluators of a config of any OpenMMLab package."""

    __test__ = False  # for pytest

    def __init__(self, cfg: Config) -> None:
        cfg = copy.deepcopy(cfg)
        load_without_workers(cfg)
        with TemporaryDirectory() as folder:
            cfg.update(work_dir=folder, log_level='ERROR', visualizer=None, custom_hooks=[])
            self.runner = build_runner(cfg)
            self.dataset = self.runner.build_dataloader(cfg.test_dataloader).dataset

    def samples(self, number: int) -> List[dict]:
        """At most that many samples, spread over the data."""
        number = min(number, len(self.dataset))
        return [self.dataset[i * len(self.dataset) // number] for i in range(number)]

    def measure(self, model: nn.Module) -> Dict[str, float]:
        """A network's main metrics, each from 0 to 1.

        Raises:
            UsageError: if the config's evaluator gives none of them.
        """
        self.runner.model = model
        with redirect_stdout(io.StringIO()):  # pycocotools prints tables
            found = self.runner.test()
        ends = {name: name.split('/')[-1] for name in found}
        metrics = {name: found[name] / METRICS[end] for name, end in ends.items() if end in METRICS}
        if not metrics:
            raise UsageError(
                f'the test_evaluator gives {", ".join(found)}, but none of {", ".join(METRICS)}: '
                'name another evaluator.'
            )
        return metrics
