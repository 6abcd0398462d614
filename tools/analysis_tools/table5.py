"""Puts Table 5 of the paper beside what is counted and measured here.

RetinaNet and Mask R-CNN with Swin-T and VanillaNet-13 (fused): parameters, multiply-accumulates,
frames per second of all of them taking turns, and with --checkpoint the AP. The frames per second
are those of fresh weights, which find next to nothing: what follows the heads costs little.
"""

import argparse
import platform
import re
import time
from statistics import median
from typing import Dict, List, Optional, Tuple

import torch
from get_flops import count
from mmdet.structures import DetDataSample
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from torch import nn
from torch.utils import collect_env

from mmvanilla import switch_to_deploy
from mmvanilla.engine import launch
from mmvanilla.engine.evaluate import evaluate
from mmvanilla.errors import UsageError
from mmvanilla.model_index import find_root
from mmvanilla.models.pretrained import read_state_dict

# Config, series number, and what was published: parameters (M), FLOPs (G), FPS on an A100, box AP,
# mask AP. Series number 3 is the paper's (Table 5), 4 that of the authors' repository. FLOPs are
# those of layers, without series activations and attention's products of two activations; the
# latter are counted in Mask R-CNN with Swin-T alone.
PUBLISHED = [
    ('retinanet_swin_t', None, 38.5, 245, 27.5, 41.5, None),
    ('retinanet_vanillanet13', 3, 74.6, 397, 29.8, 41.8, None),
    ('retinanet_vanillanet13', 4, 75.4, 396.9, 29.8, 43.0, None),
    ('mask_rcnn_swin_t', None, 47.8, 267, 28.2, 42.7, 39.3),
    ('mask_rcnn_vanillanet13', 3, 76.3, 421, 32.6, 42.9, 39.6),
    ('mask_rcnn_vanillanet13', 4, 77.1, 420.7, 32.6, 44.3, 40.1),
]
PAPER_SHAPE = (1280, 800)
AP = ('coco/bbox_mAP', 'coco/segm_mAP')
HEAD = [
    *('config', 'series number', 'parameters (M)', 'MACs (G): layers', 'all', 'FPS'),
    *('box AP', 'mask AP', 'published: parameters (M)', 'FLOPs (G)', 'FPS (A100)'),
    *('box AP', 'mask AP'),
]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--fps-shape',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help="of the images for FPS; the paper's 1280 800 on a GPU, 640 400 on a CPU",
    )
    parser.add_argument('--rounds', type=int, default=10, help='images per model for FPS')
    parser.add_argument(
        '--checkpoint',
        nargs=2,
        action='append',
        default=[],
        metavar=('CONFIG', 'FILE'),
        help='evaluate this checkpoint of one of the configs (by its name) on COCO, for AP; its '
        'series number says which row. Any number of times',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='override settings of the configs'
    )
    args = parser.parse_args()
    for name, _ in args.checkpoint:
        if name not in {row[0] for row in PUBLISHED}:
            parser.error(f'--checkpoint: {name} is none of the configs of the table')
    return args


def read_config(name: str, series_number: Optional[int], options: dict) -> Config:
    """One of the table's configs, from scratch and for one device."""
    cfg = launch.read_config(find_root() / f'configs/{name}.py')
    cfg.merge_from_dict(options)
    cfg.model.backbone.init_cfg = None
    if series_number is not None:
        cfg.model.backbone.update(act_num=series_number, norm_cfg=dict(type='BN'))
    return cfg


def make_detector(cfg: Config, device: str) -> nn.Module:
    """The fused detector with fresh weights."""
    model = MODELS.build(cfg.model)
    model.init_weights()
    return switch_to_deploy(model, inplace=True).to(device)


def measure_fps(
    models: List[nn.Module], shape: Tuple[int, int], rounds: int, device: str
) -> List[float]:
    """Frames per second of each model on one image, all taking turns; medians."""
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    meta = dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))
    times: List[List[float]] = [[] for _ in models]
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for model, mine in zip(models, times):
                start = time.perf_counter()
                model.test_step(dict(inputs=[image], data_samples=[DetDataSample(metainfo=meta)]))
                if device == 'cuda':
                    torch.cuda.synchronize()
                mine.append(time.perf_counter() - start)
    return [1 / median(mine[1:]) for mine in times]


def layer_macs(counted: Dict[str, int]) -> int:
    """Multiply-accumulates without those in series activations and attention's products."""
    return counted['macs'] - counted['series_macs'] - counted['attention_macs']


def name_device(device: str) -> str:
    if device == 'cuda':
        return torch.cuda.get_device_name()
    found = re.search(r'Model name:\s*(.+)', collect_env.get_cpu_info(collect_env.run) or '')
    return found[1] if found else platform.machine()


def find_series_number(checkpoint: str) -> Optional[int]:
    """The series number of a checkpoint's network, None if it is not a VanillaNet."""
    weights = read_state_dict(checkpoint, mmap=True)
    kernel = weights.get('backbone.stem.act.conv.weight')  # (C, 1, 2n + 1, 2n + 1)
    return None if kernel is None else kernel.shape[-1] // 2


def main() -> None:
    args = parse_args()
    MMLogger.get_instance('table5', log_level='ERROR')  # the models' own notices
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    shape = tuple(args.fps_shape or (PAPER_SHAPE if device == 'cuda' else (640, 400)))
    configs = [read_config(*row[:2], args.cfg_options or {}) for row in PUBLISHED]
    checkpoints = {}
    for config, file in args.checkpoint:
        row = (config, find_series_number(file))
        if row not in [published[:2] for published in PUBLISHED]:
            raise UsageError(f'checkpoint {file} has series number {row[1]}: no row of the table.')
        checkpoints[row] = file
    if checkpoints:
        launch.check_data(configs[0], 'test_dataloader', 'test_evaluator')
    counted = [count(cfg, PAPER_SHAPE, deploy=True) for cfg in configs]
    models = [make_detector(cfg, device) for cfg in configs]
    fps = measure_fps(models, shape, args.rounds, device)
    del models
    print(
        f'Parameters and MACs: fused, one image of {PAPER_SHAPE[0]}x{PAPER_SHAPE[1]}. FPS: fused, '
        f'one image of {shape[0]}x{shape[1]}, median of {args.rounds}, {name_device(device)}, '
        f'{torch.get_num_threads()} threads, torch {torch.__version__}.\n'
    )
    rows = [HEAD, ['---'] * len(HEAD)]
    for row, cfg, found, mine in zip(PUBLISHED, configs, counted, fps):
        cfg.launcher, cfg.work_dir = 'none', 'work_dirs/table5'
        file = checkpoints.get(row[:2])
        ap = evaluate(cfg, file, deploy=True) if file else {}
        rows.append(
            [
                row[0],
                '' if row[1] is None else row[1],
                f'{found["parameters"] / 1e6:.2f}',
                f'{layer_macs(found) / 1e9:.1f}',
                f'{found["macs"] / 1e9:.1f}',
                f'{mine:.3g}',
                *(f'{100 * ap[key]:.1f}' if key in ap else '' for key in AP),
                *('' if value is None else value for value in row[2:]),
            ]
        )
    for row in rows:
        print(f'| {" | ".join(map(str, row))} |')


if __name__ == '__main__':
    with launch.one_sentence_errors():
        main()
