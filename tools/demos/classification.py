"""The demo: trains a small classifier on handwritten digits, fuses it, and shows what came out."""

import argparse
import random
import sys
from pathlib import Path
from typing import Dict, List

from matplotlib.figure import Figure
from mmcv.image import imread
from mmengine.fileio import load
from mmpretrain import ImageClassificationInferencer
from skeleton import PREDICTIONS, Run, draw_curves, report, train_anew

from mmvanilla.checkpoint import load_checkpoint
from mmvanilla.cli.config_in_checkpoint import config_in_checkpoint
from mmvanilla.cli.figures import write_figure
from mmvanilla.cli.running import read_log

CONFIG = 'configs/digits/vanillanet-6_digits.py'
TOP1 = 'accuracy/top1'
NUM_PICTURES = 24


def count_differences(run: Run) -> int:
    """Images whose likeliest class differs between the trained and the fused network."""
    files = [run.folder / test / PREDICTIONS for test in ('test', 'test_deploy')]
    pairs = zip(*map(load, files))
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
    argparse.ArgumentParser(description=__doc__).parse_args()
    run = train_anew(CONFIG, 'work_dirs/demo_classification')
    draw_curves(run, TOP1, 'top-1 accuracy of the averaged weights, %')
    images = sorted(Path('data/digits_folders/val').glob('*/*.jpg'))
    images = random.Random(0).sample(images, NUM_PICTURES)
    results = predict(run.fused, images)
    draw_predictions(images, results, run.folder / 'predictions.png')
    print()
    for image, result in list(zip(images, results))[:5]:
        print(f'{image}: {result["pred_class"]}, score {result["pred_score"]:.3f}')
    differences = count_differences(run)
    without = read_log(run.folder)[-1][f'{TOP1}_origin']
    lines = {
        'top-1': f'{run.metrics[TOP1]:.2f}% with averaged weights (EMA), {without:.2f}% without',
        'fused': f'{run.fused_metrics[TOP1]:.2f}%; {differences} images are classified differently',
    }
    report(run, lines, 'class and score above each image, wrong ones in red')
    if differences:
        sys.exit('The fused network differs from the trained one.')


if __name__ == '__main__':
    main()
