"""The demos: train a small detector on handwritten digits, fuse it, and show what came out."""

import argparse
import shutil
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from demo_steps import draw_curves, evaluate, read_log, run_tool
from mmdet.registry import DATASETS, MODELS
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from torchvision.ops import nms

from mmvanilla.checkpoint import latest_whole_checkpoint, load_checkpoint
from mmvanilla.cli.config_in_checkpoint import config_in_checkpoint
from mmvanilla.cli.timing import time_by_turns

DEMOS = {
    'boxes': ('configs/digits/retinanet_vanillanet-6_digits.py', 'work_dirs/demo'),
    'masks': ('configs/digits/mask_rcnn_vanillanet-6_digits.py', 'work_dirs/demo_masks'),
}
METRICS = {'box AP': 'coco/bbox_mAP', 'mask AP': 'coco/segm_mAP'}
NUM_PICTURES = 8
SCORE = 0.3


def load_detector(checkpoint: Path) -> torch.nn.Module:
    """The detector inside a checkpoint, in the form that its own config says."""
    content = load_checkpoint(checkpoint)
    model = MODELS.build(config_in_checkpoint(content, checkpoint).model)
    model.load_state_dict(content['state_dict'])
    return model.eval()


def draw_predictions(model: torch.nn.Module, dataset: torch.utils.data.Dataset, path: Path) -> None:
    """Validation images in rows: truth on the left, predictions on the right."""
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dataset.metainfo
    pairs = []
    for index in range(NUM_PICTURES):
        data = dataset[index]
        image = data['inputs'].permute(1, 2, 0).numpy()[..., ::-1]  # (H, W, 3), RGB
        with torch.inference_mode():
            (result,) = model.test_step(pseudo_collate([data]))
        # Legible: of several classes at one place, the likeliest.
        predicted = result.pred_instances
        result.pred_instances = predicted[nms(predicted.bboxes, predicted.scores, 0.5)]
        visualizer.add_datasample('', np.ascontiguousarray(image), result, pred_score_thr=SCORE)
        pairs.append(cv2.copyMakeBorder(visualizer.get_image(), 3, 3, 3, 3, cv2.BORDER_CONSTANT))
    rows = [np.hstack(pairs[i : i + 2]) for i in range(0, len(pairs), 2)]
    cv2.imwrite(str(path), np.vstack(rows)[..., ::-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('demo', nargs='?', choices=DEMOS, default='boxes')
    config, work_dir = DEMOS[parser.parse_args().demo]
    work_dir = Path(work_dir)
    shutil.rmtree(work_dir, ignore_errors=True)
    seconds = run_tool('train', config, '--work-dir', str(work_dir))
    trained = latest_whole_checkpoint(work_dir)
    fused = trained.with_name(f'{trained.stem}_deploy.pth')
    found = evaluate(config, trained, work_dir / 'test')
    found_fused = evaluate(config, fused, work_dir / 'test_deploy', '--deploy')
    metrics = {name: key for name, key in METRICS.items() if key in found}

    init_default_scope('mmdet')
    models = [load_detector(trained), load_detector(fused)]
    dataset = DATASETS.build(Config.fromfile(config).val_dataloader.dataset)
    data = pseudo_collate([dataset[0]])
    with torch.inference_mode():
        seconds_each = time_by_turns([partial(model.test_step, data) for model in models], 20)
    before, after = (1000 * each for each in seconds_each)
    draw_predictions(models[1], dataset, work_dir / 'predictions.png')
    title, key = list(metrics.items())[-1]
    draw_curves(read_log(work_dir), key, f'{title} on validation images', work_dir / 'curves.png')
    print(f'\ntraining     {seconds / 60:.1f} minutes, {trained}')
    for name, key in metrics.items():
        print(f'{name:12} {found[key]:.3f} in training form, {found_fused[key]:.3f} fused')
    print(
        f'one image    {before:.1f} ms in training form, {after:.1f} ms fused '
        f'({before / after:.2f} times faster)\n'
        f'pictures     {work_dir}/predictions.png (truth left, predictions right), '
        f'{work_dir}/curves.png'
    )


if __name__ == '__main__':
    main()
