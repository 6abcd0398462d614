"""The demo: trains a small segmentor on handwritten digits, fuses it, and shows what came out."""

import shutil
from pathlib import Path
from typing import List

import cv2
import numpy as np
from demo_steps import draw_curves, evaluate, read_log, run_tool
from mmseg.apis import MMSegInferencer

from mmvanilla.checkpoint import latest_whole_checkpoint, load_checkpoint
from mmvanilla.cli.config_in_checkpoint import config_in_checkpoint

CONFIG = 'configs/digits/upernet_vanillanet-6_digits.py'
WORK_DIR = Path('work_dirs/demo_segmentation')
DATA = Path('data/digits')
NUM_PICTURES = 8


def draw_predictions(checkpoint: Path, images: List[Path], path: Path) -> None:
    """Images in rows, each with the truth in the middle and the prediction on the right."""
    content = load_checkpoint(checkpoint)
    palette = np.array(content['meta']['dataset_meta']['palette'])  # (num_classes, 3), RGB
    cfg = config_in_checkpoint(content, checkpoint)
    inferencer = MMSegInferencer(cfg, weights=str(checkpoint), device='cpu')
    rows = []
    for image in images:
        truth = DATA / 'stuffthingmaps' / image.parent.name / f'{image.stem}.png'
        maps = [
            cv2.imread(str(truth), cv2.IMREAD_GRAYSCALE),
            inferencer(str(image))['predictions'],
        ]
        picture = np.hstack([cv2.imread(str(image))[..., ::-1], *(palette[m] for m in maps)])
        rows.append(cv2.copyMakeBorder(picture, 3, 3, 3, 3, cv2.BORDER_CONSTANT))
    pairs = [np.hstack(rows[i : i + 2]) for i in range(0, len(rows), 2)]
    cv2.imwrite(str(path), np.vstack(pairs)[..., ::-1])


def main() -> None:
    shutil.rmtree(WORK_DIR, ignore_errors=True)
    seconds = run_tool('train', CONFIG, '--work-dir', str(WORK_DIR))
    trained = latest_whole_checkpoint(WORK_DIR)
    fused = trained.with_name(f'{trained.stem}_deploy.pth')
    miou = evaluate(CONFIG, trained, WORK_DIR / 'test')['mIoU']
    miou_fused = evaluate(CONFIG, fused, WORK_DIR / 'test_deploy', '--deploy')['mIoU']
    images = sorted((DATA / 'val2017').glob('*.jpg'))[:NUM_PICTURES]
    draw_predictions(fused, images, WORK_DIR / 'predictions.png')
    title = 'mIoU on validation images, %'
    draw_curves(read_log(WORK_DIR), 'mIoU', title, WORK_DIR / 'curves.png')
    print(
        f'\ntraining     {seconds / 60:.1f} minutes, {trained}\n'
        f'mIoU         {miou:.2f}% in training form, {miou_fused:.2f}% fused\n'
        f'pictures     {WORK_DIR}/predictions.png (image, truth, prediction), '
        f'{WORK_DIR}/curves.png'
    )


if __name__ == '__main__':
    main()
