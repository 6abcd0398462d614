"""The demo: trains a small classifier on handwritten digits, fuses it, and shows what came out."""

import random
import shutil
import sys
from pathlib import Path
from typing import Dict, List

from demo_steps import draw_curves, evaluate, read_log, run_tool
from matplotlib.figure import Figure
from mmcv.image import imread
from mmengine.fileio import load
from mmpretrain import ImageClassificationInferencer

from mmvanilla.checkpoint import latest_whole_checkpoint, load_checkpoint
from mmvanilla.cli.config_in_checkpoint import config_in_checkpoint
from mmvanilla.cli.figures import write_figure

CONFIG = 'configs/digits/vanillanet-6_digits.py'
WORK_DIR = Path('work_dirs/demo_classification')
TOP1 = 'accuracy/top1'
NUM_PICTURES = 24


def count_differences(before: Path, after: Path) -> int:
    """Images whose likeliest class differs between two files of predictions."""
    pairs = zip(load(before), load(after), strict=True)
    return sum(a['pred_score'].argmax() != b['pred_score'].argmax() for a, b in pairs)


def predict(checkpoint: Path, images: List[Path]) -> List[Dict]:
    """Class and score of each image, by mmpretrain's inferencer, from a fused checkpoint."""
    cfg = config_in_checkpoint(load_checkpoint(checkpoint), checkpoint)
    inferencer = ImageClassificationInferencer(cfg, pretrained=str(checkpoint), device='cpu')
    return inferencer([str(image) for image in images])


def draw_predictions(images: List[Path], results: List[Dict], path: Path) -> None:
    """The images, with what was predicted above each; wrong ones in red."""
    figure = Figure((12, 5), layout='constrained')
    axes = figure.subplots(3, NUM_PICTURES // 3)
    for axis, image, result in zip(axes.flat, images, results):
        right = result['pred_class'] == image.parent.name
        axis.imshow(imread(str(image)))
        axis.set_title(
            f'{result["pred_class"]} {result["pred_score"]:.2f}', color='black' if right else 'red'
        )
        axis.axis('off')
    write_figure(figure, path)


def main() -> None:
    shutil.rmtree(WORK_DIR, ignore_errors=True)
    seconds = run_tool('train', CONFIG, '--work-dir', str(WORK_DIR))
    trained = latest_whole_checkpoint(WORK_DIR)
    fused = trained.with_name(f'{trained.stem}_deploy.pth')
    outs = [WORK_DIR / 'predictions.pkl', WORK_DIR / 'predictions_deploy.pkl']
    top1 = evaluate(CONFIG, trained, WORK_DIR / 'test', '--out', str(outs[0]))[TOP1]
    top1_fused = evaluate(CONFIG, fused, WORK_DIR / 'test_deploy', '--out', str(outs[1]))[TOP1]
    log = read_log(WORK_DIR)
    draw_curves(log, TOP1, 'top-1 accuracy of the averaged weights, %', WORK_DIR / 'curves.png')

    images = sorted(Path('data/digits_folders/val').glob('*/*.jpg'))
    images = random.Random(0).sample(images, NUM_PICTURES)
    results = predict(fused, images)
    draw_predictions(images, results, WORK_DIR / 'predictions.png')
    print()
    for image, result in list(zip(images, results))[:5]:
        print(f'{image}: {result["pred_class"]}, score {result["pred_score"]:.3f}')
    differences = count_differences(*outs)
    print(
        f'\ntraining     {seconds / 60:.1f} minutes, {trained}\n'
        f'top-1        {top1:.2f}% with averaged weights (EMA), '
        f'{log[-1][TOP1 + "_origin"]:.2f}% without\n'
        f'fused        {top1_fused:.2f}%, {differences} images are classified otherwise\n'
        f'pictures     {WORK_DIR}/predictions.png, {WORK_DIR}/curves.png'
    )
    if differences:
        sys.exit('The fused network differs from the trained one.')


if __name__ == '__main__':
    main()
