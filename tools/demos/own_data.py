"""Trains detectors on your own images, with VanillaNet-6 and with ResNet-18, and compares them.

The folder has images/ and annotations/NAME.json in COCO's format, for training and for testing.
Each detector is trained from scratch with several seeds, the networks by turns, then fused and
evaluated on the test images. Finished runs are kept and not repeated. Prints a table; it, pictures
of predictions and the configs are left in the work dir.
"""

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, Dict, List, Sequence, Tuple

from detection import draw_predictions, load_detector
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from skeleton import Run, spread, train_once

from mmvanilla.checkpoint import replace_when_whole
from mmvanilla.cli.options import one_sentence_errors, read_config
from mmvanilla.cli.running import read_log
from mmvanilla.cli.tables import markdown_lines
from mmvanilla.cli.timing import describe_machine
from mmvanilla.config import nested_dicts
from mmvanilla.errors import UsageError
from mmvanilla.model_index import find_root

sys.path.insert(0, str(Path(__file__).parents[1] / 'analysis_tools'))
from get_flops import count  # noqa: E402  a tool beside this folder

CONFIGS = 'configs/own_data'
DETECTORS = ('retinanet', 'faster_rcnn')
BACKBONES = ('vanillanet-6', 'resnet-18')
METRICS = ('coco/bbox_mAP', 'coco/bbox_mAP_50')
HEAD = (
    *('detector', 'backbone', 'parameters (M)', 'MACs (G)', 'steps', 'minutes'),
    *('AP', 'AP50', 'AP fused', 'AP by seed'),
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path, help='the data')
    parser.add_argument('--train', default='train', help='annotations/NAME.json to train with')
    parser.add_argument('--test', default='val', help='annotations/NAME.json to test with')
    parser.add_argument('--detectors', nargs='+', choices=DETECTORS, default=DETECTORS)
    parser.add_argument('--backbones', nargs='+', choices=BACKBONES, default=BACKBONES)
    parser.add_argument('--seeds', type=int, default=3, help='number of runs of each')
    parser.add_argument('--epochs', type=int, default=14)
    parser.add_argument(
        '--scale',
        type=int,
        nargs=2,
        metavar=('WIDTH', 'HEIGHT'),
        default=(320, 240),
        help='the size within which each image is resized',
    )
    parser.add_argument('--work-dir', type=Path, help='by default work_dirs/own_data/FOLDER')
    args = parser.parse_args()
    if min(args.seeds, args.epochs, *args.scale) < 1:
        parser.error('--seeds, --epochs and --scale take numbers of 1 or more')
    args.work_dir = args.work_dir or Path('work_dirs/own_data', args.folder.resolve().name)
    return args


def read_annotations(path: Path) -> Dict[str, Any]:
    """The content of an annotation file.

    Raises:
        UsageError: if it is absent or not in COCO's format.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise UsageError(f'{path} does not exist: put it there, or name another file.') from None
    except ValueError as error:
        raise UsageError(f'{path} is no JSON file ({error}).') from None
    parts = ('images', 'annotations', 'categories')
    if not isinstance(content, dict) or not all(content.get(part) for part in parts):
        raise UsageError(f"{path} is not in COCO's format: it needs {', '.join(parts)}.")
    return content


def find_faults(content: Dict[str, Any]) -> Dict[str, List[Any]]:
    """The ids of annotations that MMDetection does not use, and of some that it does, by fault."""
    images = {image['id']: image for image in content['images']}
    categories = {category['id'] for category in content['categories']}
    faults: Dict[str, List[Any]] = {}
    for annotation in content['annotations']:
        image = images.get(annotation['image_id'])
        x, y, width, height = annotation['bbox']
        if image is None:
            fault = 'of an image that is not listed, left out'
        elif annotation['category_id'] not in categories:
            fault = 'of a category that is not listed, left out'
        elif width < 1 or height < 1 or annotation.get('area', width * height) <= 0:
            fault = 'without an area, left out'
        elif x >= image['width'] or y >= image['height'] or x + width <= 0 or y + height <= 0:
            fault = 'outside the image, left out'
        elif x < 0 or y < 0 or x + width > image['width'] or y + height > image['height']:
            fault = 'over the border, kept'
        else:
            continue
        faults.setdefault(fault, []).append(annotation['id'])
    return faults


def make_config(name: str, args: argparse.Namespace, classes: Sequence[str]) -> Config:
    """The config of a detector for these data."""
    cfg = read_config(find_root() / CONFIGS / f'{name}.py')
    for part in nested_dicts(cfg.model):
        if 'num_classes' in part and 'RPN' not in part['type']:
            part['num_classes'] = len(classes)
    for split, file in (('train', args.train), ('val', args.test), ('test', args.test)):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.update(
            data_root=str(args.folder),
            ann_file=f'annotations/{file}.json',
            data_prefix=dict(img='images/'),
            metainfo=dict(classes=tuple(classes)),
        )
        for transform in dataset.pipeline:
            if transform['type'] == 'Resize':
                transform['scale'] = tuple(args.scale)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = str(args.folder / 'annotations' / f'{args.test}.json')
    # As long a part of the run with λ < 1 as in the config.
    part = args.epochs / cfg.train_cfg.max_epochs
    cfg.train_cfg.update(max_epochs=args.epochs, val_interval=args.epochs)
    cfg.param_scheduler[1].end = args.epochs
    for hook in cfg.get('custom_hooks') or ():
        hook.decay_epochs = round(hook.decay_epochs * part)
    return cfg


def describe(cfg: Config, scale: Sequence[int], runs: Sequence[Run]) -> List[Any]:
    """The columns of ``HEAD`` about a detector that was trained several times."""
    counted = count(cfg, (scale[1], scale[0]), deploy=True)
    box, box50 = ([run.metrics[metric] for run in runs] for metric in METRICS)
    return [
        f'{counted["parameters"] / 1e6:.2f}',
        f'{counted["macs"] / 1e9:.2f}',
        max(line['step'] for line in read_log(runs[0].folder) if 'loss' in line),
        f'{mean(run.minutes for run in runs):.1f}',
        spread(box, '.3f'),
        spread(box50, '.3f'),
        spread([run.fused_metrics[METRICS[0]] for run in runs], '.3f'),
        ', '.join(f'{value:.3f}' for value in box),
    ]


def main() -> None:
    args = parse_args()
    files = {name: args.folder / 'annotations' / f'{name}.json' for name in (args.train, args.test)}
    contents = {path: read_annotations(path) for path in files.values()}
    for path, content in contents.items():
        for fault, ids in find_faults(content).items():
            some = ', '.join(map(str, ids[:5])) + (', ...' if len(ids) > 5 else '')
            print(f'warning: {path}: {len(ids)} boxes {fault}: annotations {some}', file=sys.stderr)
    categories = contents[files[args.train]]['categories']
    classes = [category['name'] for category in categories]
    configs = {}
    args.work_dir.mkdir(parents=True, exist_ok=True)
    for each in product(args.detectors, args.backbones):
        configs[each] = args.work_dir / f'{"_".join(each)}.py'
        make_config('_'.join(each), args, classes).dump(configs[each])
    runs: Dict[Tuple[str, str], List[Run]] = {each: [] for each in configs}
    for seed in range(args.seeds):
        for each, config in configs.items():
            folder = config.with_suffix('') / str(seed)
            runs[each].append(train_once(str(config), folder, seed))
    init_default_scope('mmdet')
    rows = []
    for each, config in configs.items():
        cfg = read_config(config)
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        draw_predictions(load_detector(runs[each][0].fused), dataset, config.with_suffix('.png'))
        rows.append([*each, *describe(cfg, args.scale, runs[each])])
    table = '\n'.join(markdown_lines(HEAD, rows))
    with replace_when_whole(args.work_dir / 'results.md') as temporary:
        temporary.write_text(f'{describe_machine("cpu")}\n\n{table}\n')
    print(f'\n{table}\n\nThis table and pictures (truth left, predictions right): {args.work_dir}')


if __name__ == '__main__':
    with one_sentence_errors():
        main()
