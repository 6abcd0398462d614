"""Prints Table 5 of the paper beside what is counted and measured here.

RetinaNet and Mask R-CNN with Swin-T and VanillaNet-13 (fused): parameters, multiply-accumulates,
frames per second, measured in turns, and with --checkpoint the AP. Frames per second are measured
with random weights, which find next to nothing, so what follows the heads costs little; its part of
the time is printed too.
"""

import argparse
import sys
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple
from unittest.mock import patch

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.utils import apply_to
from torch import nn

from mmvanilla import switch_to_deploy
from mmvanilla.cli.checks import check_data
from mmvanilla.cli.options import (
    add_cfg_options,
    add_device,
    log_errors_only,
    one_sentence_errors,
    read_config,
)
from mmvanilla.cli.running import evaluate
from mmvanilla.cli.tables import print_table, read_table
from mmvanilla.cli.timing import describe_machine, stopwatch, time_by_turns
from mmvanilla.errors import UsageError
from mmvanilla.model_index import find_root
from mmvanilla.models.loading.weights import load_weights, read_state_dict

sys.path.insert(0, str(Path(__file__).parents[1] / 'analysis_tools'))
from benchmark import Case, add_case, make_case, set_precision  # noqa: E402  beside this folder
from get_flops import count  # noqa: E402

Row = Dict[str, str]

# Series number 3 is the paper's (Table 5), 4 that of the authors' repository. FLOPs are those of
# layers, without series activations and attention's products of two activations; the latter are
# counted only in Mask R-CNN with Swin-T.
PUBLISHED = read_table(Path(__file__).with_name('table5.csv'))
PAPER_SHAPE = (1280, 800)
AP = ('coco/bbox_mAP', 'coco/segm_mAP')
HEAD = [
    *('config', 'series number', 'parameters (M)', 'MACs (G): layers', 'all', 'FPS'),
    *('post-processing (%)', 'box AP', 'mask AP'),
    *('published: parameters (M)', *list(PUBLISHED[0])[3:]),
]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--fps-shape',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help="image size for FPS; by default the paper's 1280 800 on a GPU, 640 400 on a CPU",
    )
    parser.add_argument('--rounds', type=int, default=10, help='images per model for FPS')
    parser.add_argument(
        '--checkpoint',
        nargs=2,
        action='append',
        default=[],
        metavar=('CONFIG', 'FILE'),
        help='name of a config and a checkpoint of it, to evaluate on COCO, for AP; its series '
        'number decides the row. May be repeated',
    )
    add_cfg_options(parser)
    add_case(parser)
    add_device(parser)
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error('--rounds must be 1 or more')
    for name, _ in args.checkpoint:
        if name not in map(config_name, PUBLISHED):
            parser.error(f'--checkpoint: {name} is not a config of the table')
    return args


def config_name(row: Row) -> str:
    """The name of a row's config, without its folder."""
    return Path(row['config']).stem


def make_config(row: Row, options: Optional[dict] = None) -> Config:
    """The config of a row, from scratch and for one device."""
    cfg = read_config(find_root() / row['config'], options)
    cfg.model.backbone.init_cfg = None
    if row['series number']:
        cfg.model.backbone.update(act_num=int(row['series number']), norm_cfg=dict(type='BN'))
    return cfg


def heads_of(model: nn.Module) -> List[nn.Module]:
    """The heads of a detector, which make boxes or masks of their outputs."""
    return [module for module in model.modules() if hasattr(module, 'predict_by_feat')]


def make_detector(cfg: Config, case: Case) -> nn.Module:
    """The fused detector with fresh weights."""
    model = MODELS.build(cfg.model)
    model.init_weights()
    for head in heads_of(model):  # MMCV's NMS takes float32 alone
        head.register_forward_hook(lambda head, inputs, outputs: to_float32(outputs))
    for module in model.modules():  # and RoIAlign no bfloat16; float16 would round its boxes
        if hasattr(module, 'roi_layers'):
            module.register_forward_pre_hook(lambda module, inputs: to_float32(inputs))
    return case.put(switch_to_deploy(model, inplace=True))


def to_float32(tensors: Any) -> Any:
    """Tensors, in lists or tuples, in float32."""
    return apply_to(tensors, lambda value: isinstance(value, torch.Tensor), torch.Tensor.float)


def measure_fps(
    models: List[nn.Module], rounds: int, case: Case
) -> Tuple[List[float], List[float]]:
    """Frames per second of each model on one image, all taking turns, and what part of the time
    post-processing takes; medians."""
    _, *shape = case.size
    image = torch.randint(0, 256, case.size, dtype=torch.uint8)
    meta = dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))
    data = dict(inputs=[image], data_samples=[DetDataSample(metainfo=meta)])

    def step(model: nn.Module) -> None:
        with torch.inference_mode(), case.autocast():
            model.test_step(data)

    steps = [partial(step, model) for model in models]
    set_precision(case.precision)
    seconds = time_by_turns(steps, rounds, warmup=1, device=case.device)
    parts = [
        post_processing(model, step, min(rounds, 5), case.device)
        for model, step in zip(models, steps)
    ]
    return [1 / each for each in seconds], parts


def post_processing(model: nn.Module, step: Callable[[], Any], rounds: int, device: str) -> float:
    """What part of a step its heads take to make boxes and masks of their outputs; the median."""
    seconds, spent = stopwatch(device), []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            results = []
            spent.append(seconds(lambda: results.append(function(*args, **kwargs))))
            return results[0]

        return call

    parts = []
    with ExitStack() as stack:
        for head in heads_of(model):
            timer = timed(head.predict_by_feat)
            stack.enter_context(patch.object(head, 'predict_by_feat', timer))
        for _ in range(rounds):
            spent.clear()
            whole = seconds(step)
            parts.append(sum(spent) / whole)
    return median(parts)


def layer_macs(counted: Dict[str, int]) -> int:
    """Multiply-accumulates without those in series activations and attention's products."""
    return counted['macs'] - counted['series_macs'] - counted['attention_macs']


def find_rows(given: List[Tuple[str, str]], configs: List[Config]) -> Dict[int, str]:
    """The file for each row, from config names and files; raises UsageError if one fits no row."""
    rows = [(config_name(row), row['series number']) for row in PUBLISHED]
    found = {}
    for config, file in given:
        weights = read_state_dict(file)
        kernel = weights.get('backbone.stem.act.conv.weight')  # (C, 1, 2n + 1, 2n + 1)
        series_number = '' if kernel is None else str(kernel.shape[-1] // 2)
        if (config, series_number) not in rows:
            raise UsageError(
                f'checkpoint {file} fits no row of {config}: its series number is '
                f'{series_number or "unknown"}.'
            )
        row = rows.index((config, series_number))
        check_data(configs[row], 'test_dataloader', 'test_evaluator')
        model = MODELS.build(configs[row].model)
        load_weights(model, weights, file)
        switch_to_deploy(model, inplace=True)
        found[row] = file
    return found


def make_rows(args: argparse.Namespace, shape: Tuple[int, int]) -> Iterator[List[Any]]:
    """The rows of the table; wrong checkpoints raise UsageError before any long work."""
    init_default_scope('mmdet')
    case = make_case(args, (3, *shape), 'detection')
    configs = [make_config(row, args.cfg_options) for row in PUBLISHED]
    checkpoints = find_rows(args.checkpoint, configs)
    counted = [count(cfg, PAPER_SHAPE, deploy=True) for cfg in configs]
    models = [make_detector(cfg, case) for cfg in configs]
    fps, parts = measure_fps(models, args.rounds, case)
    del models
    for i, (row, cfg, found) in enumerate(zip(PUBLISHED, configs, counted)):
        cfg.launcher, cfg.work_dir = 'none', 'work_dirs/table5'
        ap = evaluate(cfg, checkpoints[i], deploy=True) if i in checkpoints else {}
        yield [
            config_name(row),
            row['series number'],
            f'{found["parameters"] / 1e6:.2f}',
            f'{layer_macs(found) / 1e9:.1f}',
            f'{found["macs"] / 1e9:.1f}',
            f'{fps[i]:.3g}',
            f'{100 * parts[i]:.1f}',
            *(f'{100 * ap[key]:.1f}' if key in ap else None for key in AP),
            *list(row.values())[2:],
        ]


def main() -> None:
    args = parse_args()
    log_errors_only()
    shape = tuple(args.fps_shape or (PAPER_SHAPE if args.device == 'cuda' else (640, 400)))
    rows = make_rows(args, shape)
    first = next(rows)
    print(
        f'Parameters and MACs: fused, one image of {PAPER_SHAPE[0]}x{PAPER_SHAPE[1]}. FPS: fused, '
        f'one image of {shape[0]}x{shape[1]}, {args.precision}, {args.layout}, median of '
        f'{args.rounds}, {describe_machine(args.device)}.\n'
    )
    print_table(HEAD, chain([first], rows))


if __name__ == '__main__':
    with one_sentence_errors():
        main()
