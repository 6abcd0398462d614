"""Detects objects on images, from a checkpoint in training or deploy form, and draws them to files.

The checkpoint's own config is used; authors' files have none, --config names one.
"""

import argparse
from pathlib import Path

from mmdet.apis import DetInferencer
from mmengine.config import Config

from mmvanilla.checkpoint import load_checkpoint
from mmvanilla.engine import launch
from mmvanilla.errors import UsageError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='checkpoint file of a detector')
    parser.add_argument('images', nargs='+', help='image files')
    parser.add_argument('--config', help="config file; the checkpoint's own by default")
    parser.add_argument(
        '--out-dir', default='outputs', help='folder for pictures (vis) and boxes (preds)'
    )
    parser.add_argument('--score-thr', type=float, default=0.3, help='lowest score that is drawn')
    parser.add_argument('--device', help='cpu, cuda:0, ...; a GPU if there is one')
    return parser.parse_args()


def find_config(args: argparse.Namespace) -> Config:
    if args.config:
        return launch.read_config(args.config)
    text = (load_checkpoint(args.checkpoint, mmap=True).get('meta') or {}).get('cfg')
    if text is None:
        raise UsageError(f'checkpoint {args.checkpoint} holds no config: name one with --config.')
    return Config.fromstring(text, file_format='.py')


def main() -> None:
    args = parse_args()
    for image in args.images:
        if not Path(image).is_file():
            raise UsageError(f'image {image} does not exist: check the path.')
    cfg = find_config(args)
    launch.drop_pretrained(cfg)
    launch.use_safe_loading()
    inferencer = DetInferencer(cfg, args.checkpoint, args.device, show_progress=False)
    found = inferencer(
        args.images, out_dir=args.out_dir, pred_score_thr=args.score_thr, no_save_pred=False
    )
    for image, prediction in zip(args.images, found['predictions'], strict=True):
        drawn = sum(score >= args.score_thr for score in prediction['scores'])
        print(f'{image}: {drawn} objects, {args.out_dir}/vis/{Path(image).name}')


if __name__ == '__main__':
    with launch.one_sentence_errors():
        main()
