"""Evaluates a checkpoint of a model: detection, classification or segmentation, as the config says.

A checkpoint is evaluated in the form it is in, --deploy fuses it first if it is in training form.
The authors' files are taken as they are.
"""

import argparse
from contextlib import suppress
from typing import Dict

import torch
from mmengine.evaluator import DumpResults
from mmengine.logging import print_log

from mmvanilla import switch_to_deploy
from mmvanilla.engine import launch
from mmvanilla.errors import UsageError
from mmvanilla.models.pretrained import list_mismatches, read_state_dict
from mmvanilla.models.reparameterize import unwrap


def parse_args() -> argparse.Namespace:
    parser = launch.make_parser(__doc__)
    parser.add_argument(
        'checkpoint', help="checkpoint file, in training or deploy form, or the authors'"
    )
    parser.add_argument('--deploy', action='store_true', help='evaluate the fused network')
    parser.add_argument('--out', help='file (.pkl) for the predictions')
    args = parser.parse_args()
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error('--out needs a name that ends with .pkl')
    return args


def load_weights(
    model: torch.nn.Module, weights: Dict[str, torch.Tensor], path: str, deploy: bool
) -> None:
    """Loads weights in either form into ``model``, and fuses it if ``deploy`` asks for it.

    Raises:
        UsageError: if they are not the model's, or if the network cannot be fused at its λ.
    """
    model = unwrap(model)
    mismatches = list_mismatches(weights, model.state_dict())
    if mismatches['missing'] and not any(key.endswith('stem.conv.conv1.weight') for key in weights):
        # Either the checkpoint is fused, or it is of another model. The switch changes the model's
        # form alone: its weights are replaced right after.
        switch_to_deploy(model, inplace=True)
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


def main() -> None:
    args = parse_args()
    cfg = launch.load_config(args)
    cfg.load_from, cfg.resume = None, False  # loaded below, before EMA hooks copy the model
    launch.check_data(cfg, 'test_dataloader', 'test_evaluator')
    weights = read_state_dict(args.checkpoint, mmap=True)
    runner = launch.build_runner(cfg)
    load_weights(runner.model, weights, args.checkpoint, args.deploy)
    if args.out:
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    runner.test()


if __name__ == '__main__':
    with launch.one_sentence_errors():
        main()
