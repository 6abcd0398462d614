"""Estimates how long configs train, from the steps per second that are measured on this device.

A step is the config's own: its model, loss and optimizer, on random images, on a GPU with torch's
default of TF32 in convolutions; reading and augmenting images is not included. With --tflops also
for other devices, from the number of operations.
"""

import argparse
from functools import partial
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
from get_flops import SHAPES, count_macs
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmvanilla import UsageError
from mmvanilla.cli.options import (
    add_device,
    config_file,
    log_errors_only,
    one_sentence_errors,
    read_config,
)
from mmvanilla.cli.running import build_model, image_channels, use_amp
from mmvanilla.cli.tables import print_table
from mmvanilla.cli.timing import describe_machine, time_by_turns
from mmvanilla.config import nested_dicts, scope_of
from mmvanilla.models.norm import is_sync_norm

# Numbers of training images, by data_root; for COCO, those that show an object.
IMAGES = {'data/imagenet': 1_281_167, 'data/coco': 117_266}
HEAD = ('config', 'epochs', 'Gflop an image', 'images/s', 'hours on {gpus}')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', type=config_file, nargs='+', help='configs of classifiers or detectors'
    )
    parser.add_argument('--batch-size', type=int, default=8, help='images per step')
    parser.add_argument('--shape', type=int, nargs=2, metavar=('H', 'W'), help='size of an image')
    parser.add_argument('--rounds', type=int, default=3, help='steps that are timed')
    parser.add_argument('--gpus', type=int, default=8, help='devices that share the work')
    parser.add_argument(
        '--tflops', type=float, help='Tflop/s that a device is assumed to sustain in training'
    )
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision, float16')
    add_device(parser)
    parser.add_argument(
        '--images', type=int, help='training images of the data set, if not ImageNet or COCO'
    )
    args = parser.parse_args()
    for name in ('batch_size', 'rounds', 'gpus', 'images', 'tflops'):
        value = getattr(args, name)
        if value is not None and value <= 0:
            parser.error(f'--{name.replace("_", "-")} must be more than 0')
    return args


def count_images(cfg: Config) -> Optional[int]:
    """Training images of a config's data set, None if it is unknown."""
    root = cfg.train_dataloader.dataset.get('data_root') or ''
    return IMAGES.get(root.rstrip('/'))


def make_batch(cfg: Config, size: int, shape: Tuple[int, int, int]) -> Dict[str, Any]:
    """Random images (C, H, W) with random labels, as the config's dataloader returns them."""
    parts = nested_dicts(cfg.model)
    classes = next((part['num_classes'] for part in parts if 'num_classes' in part), 1)
    if scope_of(cfg) == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        return demo_mm_inputs(size, [list(shape)] * size, num_classes=classes, with_mask=True)
    from mmpretrain.structures import DataSample

    images = torch.randint(0, 256, (size, *shape), dtype=torch.uint8)
    labels = torch.randint(0, classes, (size,))
    return dict(
        inputs=list(images), data_samples=[DataSample().set_gt_label(label) for label in labels]
    )


def make_model(cfg: Config) -> nn.Module:
    """The config's model with fresh weights, in training mode."""
    for part in nested_dicts(cfg.model):
        if is_sync_norm(part):  # which is for several GPUs
            part['type'] = 'BN'
    model = build_model(cfg)
    model.init_weights()
    return model.train()


def measure(cfg: Config, args: argparse.Namespace) -> Dict[str, float]:
    """Images a second, and Gflop of forward and backward pass for an image, of a config's steps."""
    shape = tuple(args.shape or SHAPES.get(scope_of(cfg), (224, 224)))
    model = make_model(cfg).to(args.device)
    batch = make_batch(cfg, args.batch_size, (image_channels(model), *shape))
    step = partial(model.train_step, batch, build_optim_wrapper(model, cfg.optim_wrapper))
    data = model.data_preprocessor(batch, training=True)
    counts = count_macs(model, data.pop('inputs'), **data, mode='loss')
    macs = sum(counts[''].values())
    (seconds,) = time_by_turns([step], args.rounds, warmup=1, device=args.device)
    return dict(
        images_per_second=args.batch_size / seconds,
        # The backward pass takes twice the forward's.
        gflop=3 * 2 * macs / args.batch_size / 1e9,
    )


def write_hours(hours: float) -> str:
    """Three digits, and no exponent."""
    return f'{float(f"{hours:.3g}"):.10g}'


def make_rows(configs: Dict[str, Config], args: argparse.Namespace) -> Iterator[List[Any]]:
    """A row of the table for each config."""
    for path, cfg in configs.items():
        found = measure(cfg, args)
        epochs = cfg.train_cfg.max_epochs
        images = (args.images or count_images(cfg)) * epochs
        hours = images / found['images_per_second'] / args.gpus / 3600
        row = [path, epochs, f'{found["gflop"]:.1f}', f'{found["images_per_second"]:.3g}']
        row.append(write_hours(hours))
        if args.tflops:
            row.append(write_hours(images * found['gflop'] / 1e3 / args.tflops / args.gpus / 3600))
        yield row


def main() -> None:
    args = parse_args()
    log_errors_only()
    configs = {path: read_config(path) for path in args.config}
    for path, cfg in configs.items():
        if args.amp:
            use_amp(cfg)
        if not (args.images or count_images(cfg)):
            raise UsageError(
                f'{path} is for neither ImageNet nor COCO: give the number of images with --images.'
            )
    print(
        f'{describe_machine(args.device)}, steps of {args.batch_size} images, medians of '
        f'{args.rounds}\n',
        flush=True,
    )
    head = [cell.format(gpus=f'{args.gpus} of these') for cell in HEAD]
    if args.tflops:
        head.append(f'hours on {args.gpus} of {args.tflops:g} Tflop/s')
    print_table(head, make_rows(configs, args))


if __name__ == '__main__':
    with one_sentence_errors():
        main()
