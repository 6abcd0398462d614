"""The demos: train a small detector on handwritten digits, fuse it, and show what came out."""

import argparse
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from skeleton import both, draw_curves, report, train_anew, write_picture
from torchvision.ops import nms

from mmvanilla.checkpoint import load_checkpoint
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
    cfg = config_in_checkpoint(content, checkpoint)
    model = MODELS.build(dict(cfg.model, train_cfg=None))  # Mask R-CNN reads the key
    model.load_state_dict(content['state_dict'])
    return model.eval()


def draw_predictions(model: torch.nn.Module, dataset: torch.utils.data.Dataset, path: Path) -> None:
    """Validation images in rows: truth on the left, predictions on the right."""
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dataset.metainfo
    pictures = []
    for index in range(min(NUM_PICTURES, len(dataset))):
        data = dataset[index]
        image = data['inputs'].permute(1, 2, 0).numpy()[..., ::-1]  # (H, W, 3), RGB
        height, width = data['data_samples'].ori_shape  # all boxes are in pixels of this size
        image = cv2.resize(np.ascontiguousarray(image), (width, height))
        with torch.inference_mode():
            (result,) = model.test_step(pseudo_collate([data]))
        # To keep it legible: the most likely of several classes at one place.
        predicted = result.pred_instances
        result.pred_instances = predicted[nms(predicted.bboxes, predicted.scores, 0.5)]
        for boxes in (result.gt_instances.bboxes, result.pred_instances.bboxes):
            corners = getattr(boxes, 'tensor', boxes)  # (boxes, 4), of which two are x
            corners[:, 0::2].clamp_(0, width)  # else matplotlib makes room beside the image
            corners[:, 1::2].clamp_(0, height)
        visualizer.add_datasample('', image, result, pred_score_thr=SCORE)
        pictures.append(visualizer.get_image())
    write_picture(pictures, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('demo', nargs='?', choices=DEMOS, default='boxes')
    config, folder = DEMOS[parser.parse_args().demo]
    run = train_anew(config, folder)
    metrics = {name: key for name, key in METRICS.items() if key in run.metrics}

    init_default_scope('mmdet')
    models = [load_detector(run.trained), load_detector(run.fused)]
    dataset = DATASETS.build(Config.fromfile(config).val_dataloader.dataset)
    data = pseudo_collate([dataset[0]])
    with torch.inference_mode():
        seconds = time_by_turns([partial(model.test_step, data) for model in models], 20)
    before, after = (1000 * each for each in seconds)
    draw_predictions(models[1], dataset, run.folder / 'predictions.png')
    title, key = list(metrics.items())[-1]
    draw_curves(run, key, f'{title} on validation images')
    lines = {name: both(run, key, '.3f') for name, key in metrics.items()}
    lines['one image'] = (
        f'{before:.1f} ms in training form, {after:.1f} ms fused '
        f'({before / after:.2f} times faster)'
    )
    report(run, lines, 'truth left, predictions right')


if __name__ == '__main__':
    main()
