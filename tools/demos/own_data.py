"""Trains detectors on your own images, with VanillaNet-6 and with ResNet-18, and compares them.

The folder has images/ and annotations/NAME.json in COCO's format, for training and for testing.
Each detector is trained from scratch with several seeds, the networks by turns, then fused and
evaluated on the test images. Finished runs are kept and not repeated. Prints a table; it, pictures
of predictions and the configs are left in the work dir.
"""

import argparse
import sys
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Dict, List, Sequence, Tuple

import mmcv
from detection import draw_predictions, load_detector
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from skeleton import RESULTS, Run, spread, train_once
from tqdm import tqdm

from mmvanilla.checkpoint import check_writable, load_checkpoint, replace_when_whole
from mmvanilla.cli.checks import SETTINGS
from mmvanilla.cli.options import one_sentence_errors, read_config
from mmvanilla.cli.tables import markdown_lines
from mmvanilla.cli.timing import describe_machine
from mmvanilla.coco_annotations import (
    OVER_THE_BORDER,
    faulty_boxes,
    list_some,
    read_annotations,
)
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
        metavar=('LONG', 'SHORT'),
        default=(320, 240),
        help='images are resized to have at most these sides',
    )
    parser.add_argument('--work-dir', type=Path, help='by default work_dirs/own_data/FOLDER')
    args = parser.parse_args()
    if min(args.seeds, args.epochs, *args.scale) < 1:
        parser.error('--seeds, --epochs and --scale take numbers of 1 or more')
    args.work_dir = args.work_dir or Path('work_dirs/own_data', args.folder.resolve().name)
    return args


def check_files(train: Path, test: Path, images: Path) -> List[str]:
    """Reads both files of annotations, and warns about boxes with faults.

    Returns:
        The names of the classes, in the order by which MMDetection numbers them.

    Raises:
        UsageError: if a file is not as it should be, if their categories differ, or if an image is
            missing.
    """
    contents = {path: read_annotations(path) for path in (train, test)}
    names = {path: [each['name'] for each in contents[path]['categories']] for path in contents}
    if names[train] != names[test]:
        raise UsageError(
            f'{train} has the categories {list_some(names[train])}, but {test} '
            f'{list_some(names[test])}: write the same into both, in one order.'
        )
    for path, content in contents.items():
        if not content['annotations'] or not content['categories']:
            raise UsageError(f'{path} has no annotations or no categories: add some.')
        check_boxes(path, content, 'counted as missed' if path == test else 'left out')
        for image in content['images']:
            if not (images / image['file_name']).is_file():
                raise UsageError(
                    f'{images / image["file_name"]}, which {path} lists, does not exist: put it '
                    'there.'
                )
    check_metric(test, contents[test]['annotations'])
    shared = set.intersection(
        *({image['file_name'] for image in content['images']} for content in contents.values())
    )
    if shared:
        warn(f'{train} and {test} share {len(shared)} images: {list_some(sorted(shared))}')
    check_images(images, [image for content in contents.values() for image in content['images']])
    return names[train]


def warn(text: str) -> None:
    print(f'warning: {text}', file=sys.stderr)


def check_boxes(path: Path, content: Dict[str, Any], use: str) -> None:
    """Warns about boxes with faults.

    Args:
        path: The file, for the messages.
        content: What ``read_annotations`` returns.
        use: What happens to boxes with faults.

    Raises:
        UsageError: if no box is left.
    """
    annotations = [each for each in content['annotations'] if not each.get('iscrowd')]
    faults = faulty_boxes(dict(content, annotations=annotations))
    for fault, ids in faults.items():
        treated = 'used as they are' if fault == OVER_THE_BORDER else use
        warn(
            f'{path}: {len(ids)} with boxes {fault}, which are {treated}: annotations '
            f'{list_some(ids)}'
        )
    over = len(faults.pop(OVER_THE_BORDER, ()))
    if over > len(annotations) / 2:
        warn(f'{path}: most boxes reach over the border: is bbox [x, y, width, height]?')
    crowds = len(content['annotations']) - len(annotations)
    if crowds:
        warn(f'{path}: {crowds} annotations are of crowds (iscrowd 1), which are not trained')
    if len(annotations) == sum(map(len, faults.values())):
        raise UsageError(
            f'{path} has no box that can be used: bbox is [x, y, width, height] in pixels, area '
            'larger than 0, and iscrowd 0.'
        )


def check_images(folder: Path, images: Sequence[Dict[str, Any]]) -> None:
    """Loads all images, and warns about those of another size than annotated.

    Raises:
        UsageError: if one cannot be loaded.
    """
    others = []
    for image in tqdm(images, desc='checking images', unit='image'):
        path = folder / image['file_name']
        try:
            pixels = mmcv.imread(str(path))  # as MMDetection does
        except Exception:
            pixels = None
        if pixels is None:
            raise UsageError(f'{path} cannot be loaded: put a whole image there.')
        if pixels.shape[:2] != (image['height'], image['width']):
            others.append(image['file_name'])
    if others:
        warn(
            f'{len(others)} images have another height and width than annotated: '
            f'{list_some(others)}'
        )


def check_metric(path: Path, annotations: Sequence[Dict[str, Any]]) -> None:
    """Raises UsageError if pycocotools cannot use annotations, or counts right boxes as wrong."""
    ids = [annotation.get('id') for annotation in annotations]
    if len(set(ids)) < len(ids) or not all(ids):
        raise UsageError(
            f'{path}: an annotation has no id, the id of another, or the id 0, which pycocotools '
            'takes for none: number them from 1.'
        )
    if not all('iscrowd' in annotation for annotation in annotations):
        raise UsageError(f'{path}: an annotation has no iscrowd, which pycocotools needs: add 0.')


def make_config(name: str, args: argparse.Namespace, classes: Sequence[str]) -> Config:
    """The config of a detector for these data."""
    cfg = read_config(find_root() / CONFIGS / f'{name}.py')
    for part in nested_dicts(cfg.model):
        if 'num_classes' in part and 'RPN' not in part['type']:
            part['num_classes'] = len(classes)
    for split, file in (('train', args.train), ('val', args.test), ('test', args.test)):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.update(
            data_root=str(args.folder.resolve()),
            ann_file=f'annotations/{file}.json',
            data_prefix=dict(img='images/'),
            metainfo=dict(classes=tuple(classes), palette='random'),
        )
        for transform in dataset.pipeline:
            if transform['type'] == 'Resize':
                transform['scale'] = tuple(args.scale)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = str(args.folder.resolve() / f'annotations/{args.test}.json')
    # As long a part of the run with λ < 1 as in the config.
    part = args.epochs / cfg.train_cfg.max_epochs
    cfg.train_cfg.update(max_epochs=args.epochs, val_interval=args.epochs)
    cfg.param_scheduler[1].end = args.epochs
    for hook in cfg.get('custom_hooks') or ():
        hook.decay_epochs = round(hook.decay_epochs * part)
    return Config({name: value for name, value in cfg.items() if name in SETTINGS})


def write_configs(configs: Dict[Path, Config]) -> None:
    """Writes configs.

    Raises:
        UsageError: if there are finished runs of another config, before any is written.
    """
    for path, cfg in configs.items():
        runs = list(path.with_suffix('').glob(f'*/{RESULTS}'))
        if runs and path.exists() and path.read_text() != cfg.pretty_text:
            raise UsageError(
                f'{runs[0].parent} holds a run with other settings or data: name another '
                '--work-dir, or remove it.'
            )
    for path, cfg in configs.items():
        cfg.dump(path)


def describe(cfg: Config, scale: Sequence[int], runs: Sequence[Run]) -> List[Any]:
    """The columns of ``HEAD`` about a detector that was trained several times."""
    counted = count(cfg, (scale[1], scale[0]), deploy=True)
    # There is no metric if nothing is detected.
    box, box50 = ([run.metrics.get(metric, 0.0) for run in runs] for metric in METRICS)
    fused = [run.fused_metrics.get(METRICS[0], 0.0) for run in runs if run.fused.exists()]
    return [
        f'{counted["parameters"] / 1e6:.2f}',
        f'{counted["macs"] / 1e9:.2f}',
        load_checkpoint(runs[0].trained)['meta']['iter'],
        f'{median(run.minutes for run in runs):.1f}',
        spread(box, '.3f'),
        spread(box50, '.3f'),
        spread(fused, '.3f') if fused else None,
        ', '.join(f'{value:.3f}' for value in box),
    ]


def main() -> None:
    args = parse_args()
    files = [args.folder / f'annotations/{name}.json' for name in (args.train, args.test)]
    classes = check_files(*files, args.folder / 'images')
    check_writable(str(args.work_dir), is_folder=True)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    configs = {
        each: args.work_dir / f'{"_".join(each)}.py'
        for each in product(args.detectors, args.backbones)
    }
    write_configs({path: make_config(path.stem, args, classes) for path in configs.values()})
    runs: Dict[Tuple[str, str], List[Run]] = {each: [] for each in configs}
    for seed in range(args.seeds):
        for each, config in configs.items():
            folder = config.with_suffix('') / str(seed)
            runs[each].append(train_once(str(config), folder, seed, files))
            if METRICS[0] not in runs[each][-1].metrics:
                warn(f'{folder} detects nothing on the test images: its AP counts as 0')
    rows = [
        [*each, *describe(read_config(config), args.scale, runs[each])]
        for each, config in configs.items()
    ]
    table = '\n'.join(markdown_lines(HEAD, rows))
    with replace_when_whole(args.work_dir / 'results.md') as temporary:
        temporary.write_text(f'{describe_machine(get_device())}\n\n{table}\n')
    print(f'\n{table}\n')
    init_default_scope('mmdet')
    for each, config in configs.items():
        dataset = DATASETS.build(read_config(config).test_dataloader.dataset)
        run = runs[each][0]
        model = load_detector(run.fused if run.fused.exists() else run.trained)
        draw_predictions(model, dataset, config.with_suffix('.png'))
    print(f'This table and pictures (truth left, predictions right): {args.work_dir}')


if __name__ == '__main__':
    with one_sentence_errors():
        main()
