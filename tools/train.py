"""Trains a model: detection, classification or segmentation, as the config says."""

import argparse
import os

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from mmvanilla.checkpoint import (
    check_writable,
    get_state_dict,
    is_resumable,
    latest_whole_checkpoint,
    load_checkpoint,
    reserve_folder,
)
from mmvanilla.cli.checks import (
    check_channels,
    check_classes,
    check_data,
    check_pretrained,
)
from mmvanilla.cli.options import load_config, make_parser, one_sentence_errors
from mmvanilla.cli.running import STARTERS, build_runner, drop_pretrained, use_amp
from mmvanilla.config import class_of, scope_of
from mmvanilla.errors import UsageError
from mmvanilla.models.loading.official import is_official_state_dict


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument('--amp', action='store_true', help='train in automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the batch size over auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='checkpoint to resume from; by default the newest complete one in the work dir',
    )
    return parser.parse_args()


def merge_train_options(cfg: Config, args: argparse.Namespace) -> None:
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UsageError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config.')
        cfg.auto_scale_lr.enable = True
    # A run killed while writing, or before a kept checkpoint is replaced, loses nothing.
    cfg.default_hooks = hooks = cfg.get('default_hooks') or {}
    hook = hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
    if hook and class_of(hook, scope_of(cfg), HOOKS) is CheckpointHook:
        hook['type'] = 'mmvanilla.AtomicCheckpointHook'
    in_config = cfg.get('resume') and not cfg.get('load_from')
    if args.resume == 'auto' or (in_config and not args.resume):
        args.resume = latest_whole_checkpoint(
            cfg.work_dir, *((hook or {}).get(name) for name in ('out_dir', 'filename_tmpl'))
        )
        if args.resume is None:  # the first start of a job that is restarted whenever it dies
            print(f'No checkpoint to resume from in {cfg.work_dir}: starting from the beginning.')
            cfg.resume = False
    if args.resume:
        cfg.resume, cfg.load_from = True, str(args.resume)


def holds_backbone(checkpoint: dict, cfg: Config) -> bool:
    """Whether loading the checkpoint gives the model's backbone its weights."""
    weights = get_state_dict(checkpoint)
    bases = getattr(class_of(cfg.model, scope_of(cfg)), '__mro__', ())
    is_classifier = 'ImageClassifier' in [each.__name__ for each in bases]
    return any(key.startswith('backbone.') for key in weights) or (
        is_official_state_dict(weights) and is_classifier
    )


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    check_writable(cfg.work_dir, is_folder=True)
    # With a launcher, the first process of the run reserves the folder.
    is_first = int(os.environ.get(STARTERS.get(cfg.launcher, [''])[0], 0)) == 0
    if is_first and os.path.isdir(cfg.work_dir):
        reserve_folder(cfg.work_dir)
    if not all(cfg.get(name) for name in ('train_dataloader', 'train_cfg', 'optim_wrapper')):
        raise UsageError(
            f'{args.config} is only for inference: it has no train_dataloader, train_cfg or '
            'optim_wrapper; take the config that the network was trained with.'
        )
    merge_train_options(cfg, args)
    check_data(cfg, 'train_dataloader', 'val_dataloader', 'val_evaluator')
    # Remote files and the folders of sharded strategies are read by mmengine alone.
    if cfg.get('load_from') and not ('://' in cfg.load_from or os.path.isdir(cfg.load_from)):
        checkpoint = load_checkpoint(cfg.load_from, values=not cfg.get('resume'))
        if holds_backbone(checkpoint, cfg):
            drop_pretrained(cfg)
        if cfg.get('resume') and not is_resumable(checkpoint, cfg.load_from):
            raise UsageError(
                f'checkpoint {cfg.load_from} holds only weights, so no run can resume from it: '
                'take an epoch_*.pth that training wrote; or, if it is not fused, start from its '
                'weights with --cfg-options load_from=..., without --resume.'
            )
    if not cfg.get('resume'):
        check_pretrained(cfg)
    check_channels(cfg)
    check_classes(cfg)
    if is_first:
        reserve_folder(cfg.work_dir)
    build_runner(cfg).train()


if __name__ == '__main__':
    with one_sentence_errors('interrupted; --resume goes on from the last checkpoint.'):
        main()
