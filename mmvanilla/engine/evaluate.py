"""Evaluating a checkpoint of a model, in the form that it is in or fused."""

from contextlib import suppress
from typing import Dict, Optional

from mmengine.config import Config
from mmengine.evaluator import DumpResults
from mmengine.logging import print_log
from torch import Tensor, nn

from ..errors import UsageError
from ..models.pretrained import list_mismatches, read_state_dict
from ..models.reparameterize import (
    form_of,
    merge_deep_convs,
    merge_weights,
    switch_to_deploy,
    unwrap,
)
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
    weights = read_state_dict(checkpoint, mmap=True)
    runner = launch.build_runner(cfg)
    load_weights(runner.model, weights, checkpoint, deploy)
    if out:
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=out))
    return runner.test()


def load_weights(model: nn.Module, weights: Dict[str, Tensor], path: str, deploy: bool) -> None:
    """Loads weights in either form into ``model``, and fuses it if ``deploy`` asks for it.

    Raises:
        UsageError: if they are not the model's, or if the network cannot be fused at its λ.
    """
    model = unwrap(model)
    # Where the form is another, the model is switched to it; its weights are replaced right after.
    switch = {'merged': merge_deep_convs, 'deploy': switch_to_deploy}.get(form_of(model, weights))
    if switch:
        switch(model, inplace=True)
    weights = merge_weights(model, weights)
    mismatches = list_mismatches(weights, model.state_dict())
    with suppress(RuntimeError):  # about shapes, which are named below
        model.load_state_dict(weights, strict=False)
    for what in ('missing', 'of another shape'):
        if mismatches[what]:
            raise UsageError(
                f'checkpoint {path} is of another model, {what}: {mismatches[what][0]} '
                f'(and {len(mismatches[what]) - 1} more).'
            )
    if mismatches['unexpected']:
        print_log(f'Keys that the model does not have: {mismatches["unexpected"]}', 'current')
    if deploy:
        switch_to_deploy(model, inplace=True)
