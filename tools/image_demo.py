"""Detects objects on images, by a checkpoint or an .onnx or .xml file, and draws them to files.

The config in that file is used; the authors' files have none and need --config.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any, Optional

import cv2
import torch
from mmdet.apis import DetInferencer
from mmengine.config import Config
from torch import nn

from mmvanilla.checkpoint import load_checkpoint
from mmvanilla.cli.config_in_checkpoint import check_same_model, config_in_checkpoint
from mmvanilla.cli.options import config_file, one_sentence_errors, read_config
from mmvanilla.cli.running import drop_pretrained, use_safe_loading
from mmvanilla.config import scope_of
from mmvanilla.deployment.exported_network import is_exported, load_exported, read_description
from mmvanilla.errors import UsageError
from mmvanilla.models.loading.weights import load_weights, read_state_dict


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='checkpoint of a detector, or its .onnx or .xml file')
    parser.add_argument('images', nargs='+', help='image files, or folders of them')
    parser.add_argument(
        '--config', type=config_file, help="config file; the checkpoint's own by default"
    )
    parser.add_argument(
        '--out-dir', default='outputs', help='folder for pictures (vis) and boxes (preds)'
    )
    parser.add_argument('--score-thr', type=float, default=0.3, help='lowest score to draw')
    parser.add_argument('--device', help='cpu, cuda:0, ...; by default a GPU if there is one')
    return parser.parse_args()


def check_input(args: argparse.Namespace) -> None:
    """Raises UsageError for files that are no images, and replaces folders by what is in them."""
    images = []
    for name in args.images:
        found = sorted(str(path) for path in Path(name).iterdir()) if Path(name).is_dir() else None
        if found is None and not is_image(name):
            raise UsageError(f'{name} is not an image file: check the path.')
        images += [name] if found is None else filter(is_image, found)
        if found is not None and not any(map(is_image, found)):
            raise UsageError(f'there is no image in {name}: check the path.')
    args.images = images
    names = Counter(Path(image).stem for image in images)
    for name, number in names.items():
        if number > 1:
            raise UsageError(
                f'two images are called {name}, so one result would replace the other: rename one.'
            )
    if (args.device or '').startswith('cuda') and not torch.cuda.is_available():
        raise UsageError(f'--device {args.device} needs a GPU: leave it out.')


def is_image(path: str) -> bool:
    return Path(path).is_file() and cv2.haveImageReader(path)


def find_config(args: argparse.Namespace) -> Config:
    if args.config:
        cfg = read_config(args.config)
        if is_exported(args.checkpoint):
            about, _ = read_description(args.checkpoint)
            check_same_model(about['config'], cfg, args.checkpoint)
    else:
        if is_exported(args.checkpoint):
            content = dict(meta=dict(cfg=read_description(args.checkpoint)[0]['config']))
        else:
            content = load_checkpoint(args.checkpoint)
        cfg = config_in_checkpoint(content, args.checkpoint)
        cfg.visualizer = dict(type='DetLocalVisualizer')
        cfg.test_dataloader.dataset.type = 'CocoDataset'  # for its colours; no data is read
    if scope_of(cfg) != 'mmdet':
        raise UsageError(f'{args.config or args.checkpoint} is not for a detector.')
    drop_pretrained(cfg)
    return cfg


class StrictInferencer(DetInferencer):
    """An inferencer whose weights, in training or deploy form, must be the model's."""

    def _init_model(self, cfg: Config, weights: str, device: str = 'cpu') -> nn.Module:
        self.weights = weights
        if is_exported(weights):
            return load_exported(weights, cfg)
        return super()._init_model(cfg, weights, device)

    def _load_weights_to_model(
        self, model: nn.Module, checkpoint: Optional[dict], *args: Any
    ) -> None:
        load_weights(model, read_state_dict(self.weights), self.weights)
        super()._load_weights_to_model(model, checkpoint, *args)


def main() -> None:
    args = parse_args()
    check_input(args)
    use_safe_loading()
    inferencer = StrictInferencer(
        find_config(args), args.checkpoint, args.device, show_progress=len(args.images) > 1
    )
    found = inferencer(
        args.images, out_dir=args.out_dir, pred_score_thr=args.score_thr, no_save_pred=False
    )
    for image, prediction in zip(args.images, found['predictions']):
        drawn = sum(score >= args.score_thr for score in prediction['scores'])
        print(f'{image}: {drawn} objects, {args.out_dir}/vis/{Path(image).name}')


if __name__ == '__main__':
    with one_sentence_errors():
        main()
