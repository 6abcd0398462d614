"""Trains a model: detection, classification or segmentation, as the config says."""

import argparse

from mmengine.config import Config

from mmvanilla.checkpoint import latest_whole_checkpoint, load_checkpoint
from mmvanilla.engine import launch
from mmvanilla.errors import UsageError


def parse_args() -> argparse.Namespace:
    parser = launch.make_parser(__doc__)
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
        help='checkpoint to resume from; without one, the newest whole one in the work dir',
    )
    return parser.parse_args()


def merge_train_options(cfg: Config, args: argparse.Namespace) -> None:
    if args.amp:
        launch.check_amp()
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UsageError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config.')
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume = True
        resume_from = (
            latest_whole_checkpoint(cfg.work_dir) if args.resume == 'auto' else args.resume
        )
        cfg.load_from = str(resume_from)
    # A run killed while writing, or before a kept checkpoint is replaced, loses nothing.
    checkpoint_hook = cfg.get('default_hooks', {}).get('checkpoint')
    if checkpoint_hook and checkpoint_hook.type == 'CheckpointHook':
        checkpoint_hook.type = 'mmvanilla.AtomicCheckpointHook'


def main() -> None:
    args = parse_args()
    cfg = launch.load_config(args)
    merge_train_options(cfg, args)
    launch.check_data(cfg, 'train_dataloader', 'val_dataloader')
    if cfg.get('load_from'):
        load_checkpoint(cfg.load_from, mmap=True)
    if not cfg.get('resume'):
        launch.check_pretrained(cfg)
    launch.build_runner(cfg).train()


if __name__ == '__main__':
    with launch.one_sentence_errors():
        main()
