"""Puts Table 5 of the paper beside what is counted and measured here.

RetinaNet and Mask R-CNN with Swin-T and VanillaNet-13 (fused): parameters, multiply-accumulates,
frames per second of all of them taking turns, and with --checkpoint the AP. The frames per second
are those of fresh weights, which find next to nothing: what follows the heads costs little.
"""

import argparse
from functools import partial
from typing import Any, Dict, List, Optional, Tuple

import torch
from get_flops import count
from mmdet.structures import DetDataSample
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmvanilla import switch_to_deploy
from mmvanilla.cli.checks import check_data
from mmvanilla.cli.options import one_sentence_errors, read_config
from mmvanilla.cli.running import evaluate
from mmvanilla.cli.timing import name_device, time_by_turns
from mmvanilla.errors import UsageError
from mmvanilla.model_index import find_root
from mmvanilla.models.loading.weights import load_weights, read_state_dict

# Config, series number, and what was published: parameters (M), FLOPs (G), FPS on an A100, box AP,
# mask AP. Series number 3 is the paper's (Table 5), 4 that of the authors' repository. FLOPs are
# those of layers, without series activations and attention's products of two activations; the
# latter are counted in Mask R-CNN with Swin-T alone.
PUBLISHED = [
    ('retinanet_swin-t_coco', None, 38.5, 245, 27.5, 41.5, None),
    ('retinanet_vanillanet13', 3, 74.6, 397, 29.8, 41.8, None),
    ('retinanet_vanillanet13', 4, 75.4, 396.9, 29.8, 43.0, None),
    ('mask_rcnn_swin-t_coco', None, 47.8, 267, 28.2, 42.7, 39.3),
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
    if args.rounds < 1:
        parser.error('--rounds: at least 1')
    for name, _ in args.checkpoint:
        if name not in {row[0] for row in PUBLISHED}:
            parser.error(f'--checkpoint: {name} is none of the configs of the table')
    return args


def make_config(name: str, series_number: Optional[int], options: dict) -> Config:
    """One of the table's configs, from scratch and for one device."""
    cfg = read_config(find_root() / f'configs/{name}.py')
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
    data = dict(inputs=[image], data_samples=[DetDataSample(metainfo=meta)])
    with torch.inference_mode():
        seconds = time_by_turns(
            [partial(model.test_step, data) for model in models], rounds, warmup=1, device=device
        )
    return [1 / each for each in seconds]


def layer_macs(counted: Dict[str, int]) -> int:
    """Multiply-accumulates without those in series activations and attention's products."""
    return counted['macs'] - counted['series_macs'] - counted['attention_macs']


def print_row(cells: List[Any]) -> None:
    print(f'| {" | ".join("" if cell is None else str(cell) for cell in cells)} |', flush=True)


def find_rows(given: List[Tuple[str, str]], configs: List[Config]) -> Dict[int, str]:
    """The rows that config names and files are for; raises UsageError where they fit none."""
    rows = [row[:2] for row in PUBLISHED]
    found = {}
    for config, file in given:
        weights = read_state_dict(file)
        kernel = weights.get('backbone.stem.act.conv.weight')  # (C, 1, 2n + 1, 2n + 1)
        series_number = None if kernel is None else kernel.shape[-1] // 2
        if (config, series_number) not in rows:
            raise UsageError(
                f'checkpoint {file} is of no row of {config}: its series number is {series_number}.'
            )
        row = rows.index((config, series_number))
        check_data(configs[row], 'test_dataloader', 'test_evaluator')
        model = MODELS.build(configs[row].model)
        load_weights(model, weights, file)
        switch_to_deploy(model, inplace=True)
        found[row] = file
    return found


def main() -> None:
    args = parse_args()
    MMLogger.get_instance('table5', log_level='ERROR')  # the models' own notices
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    shape = tuple(args.fps_shape or (PAPER_SHAPE if device == 'cuda' else (640, 400)))
    init_default_scope('mmdet')
    configs = [make_config(*row[:2], args.cfg_options or {}) for row in PUBLISHED]
    checkpoints = find_rows(args.checkpoint, configs)
    counted = [count(cfg, PAPER_SHAPE, deploy=True) for cfg in configs]
    models = [make_detector(cfg, device) for cfg in configs]
    fps = measure_fps(models, shape, args.rounds, device)
    del models
    print(
        f'Parameters and MACs: fused, one image of {PAPER_SHAPE[0]}x{PAPER_SHAPE[1]}. FPS: fused, '
        f'one image of {shape[0]}x{shape[1]}, median of {args.rounds}, {name_device(device)}, '
        f'{torch.get_num_threads()} threads, torch {torch.__version__}.\n'
    )
    print_row(HEAD)
    print_row(['---'] * len(HEAD))
    for i, (row, cfg, found) in enumerate(zip(PUBLISHED, configs, counted)):
        cfg.launcher, cfg.work_dir = 'none', 'work_dirs/table5'
        ap = evaluate(cfg, checkpoints[i], deploy=True) if i in checkpoints else {}
        print_row(
            [
                *row[:2],
                f'{found["parameters"] / 1e6:.2f}',
                f'{layer_macs(found) / 1e9:.1f}',
                f'{found["macs"] / 1e9:.1f}',
                f'{fps[i]:.3g}',
                *(f'{100 * ap[key]:.1f}' if key in ap else None for key in AP),
                *row[2:],
            ]
        )


if __name__ == '__main__':
    with one_sentence_errors():
        main()
