"""The demo: trains a small segmentor on handwritten digits, fuses it, and shows what came out."""

import argparse
from pathlib import Path
from typing import List

import cv2
import numpy as np
from mmseg.apis import MMSegInferencer
from skeleton import both, draw_curves, report, train_anew, write_picture

from mmvanilla.checkpoint import load_checkpoint
from mmvanilla.cli.config_in_checkpoint import config_in_checkpoint

CONFIG = 'configs/digits/upernet_vanillanet-6_digits.py'
DATA = Path('data/digits')
NUM_PICTURES = 8


def draw_predictions(checkpoint: Path, images: List[Path], path: Path) -> None:
    """Images in rows, each with the truth in the middle and the prediction on the right."""
    content = load_checkpoint(checkpoint)
    palette = np.array(content['meta']['dataset_meta']['palette'])  # (num_classes, 3), RGB
    cfg = config_in_checkpoint(content, checkpoint)
    cfg.visualizer = dict(type='SegLocalVisualizer')
    inferencer = MMSegInferencer(cfg, weights=str(checkpoint), device='cpu')
    pictures = []
    for image in images:
        truth = DATA / 'stuffthingmaps' / image.parent.name / f'{image.stem}.png'
        maps = [
            cv2.imread(str(truth), cv2.IMREAD_GRAYSCALE),
            inferencer(str(image))['predictions'],
        ]
        pictures.append(np.hstack([cv2.imread(str(image))[..., ::-1], *(palette[m] for m in maps)]))
    write_picture(pictures, path)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    run = train_anew(CONFIG, 'work_dirs/demo_segmentation')
    images = sorted((DATA / 'val2017').glob('*.jpg'))[:NUM_PICTURES]
    draw_predictions(run.fused, images, run.folder / 'predictions.png')
    draw_curves(run, 'mIoU', 'mIoU on validation images, %')
    report(run, {'mIoU (%)': both(run, 'mIoU', '.2f')}, 'image, truth, prediction')


if __name__ == '__main__':
    main()
