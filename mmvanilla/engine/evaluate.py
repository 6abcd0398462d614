"""Evaluating a checkpoint of a model, in the form that it is in or fused."""

from typing import Dict, Optional

from mmengine.config import Config
from mmengine.evaluator import DumpResults

from ..models.loading import load_weights, read_state_dict
from ..models.reparameterize import switch_to_deploy, unwrap
from . import launch


def evaluate(
    cfg: Config, checkpoint: str, deploy: bool = False, out: Optional[str] = None
) -> Dict[str, float]:
    """The metrics of a checkpoint on the config's test data.

    Args:
        cfg: A config of any OpenMMLab package.
        checkpoint: Path or address of a checkpoint in training or deploy form; the authors'
            classifiers and detectors are taken as they are.
        deploy: Whether to evaluate the fused network.
        out: File (.pkl) for the predictions.

    Raises:
        UsageError: if data or weights are not there, or if the weights are of another model.
    """
    cfg.load_from, cfg.resume = None, False  # loaded below, before EMA hooks copy the model
    launch.check_data(cfg, 'test_dataloader', 'test_evaluator')
    weights = read_state_dict(checkpoint)
    runner = launch.build_runner(cfg)
    load_weights(unwrap(runner.model), weights, checkpoint)
    if deploy:
        switch_to_deploy(runner.model, inplace=True)
    if out:
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=out))
    return runner.test()
