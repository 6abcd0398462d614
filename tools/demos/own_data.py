"""Trains detectors on your own images, with VanillaNet-6 and with ResNet-18, and compares them.

The folder has images/ and annotations/NAME.json in COCO's format, for training and for testing.
Each detector is trained from scratch with several seeds, the networks by turns, then fused and
evaluated on the test images. Finished runs are kept and not repeated. Prints a table; it, pictures
of predictions and the configs are left in the work dir.
"""

import argparse
import hashlib
import os
import sys
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Dict, Iterable, List, NamedTuple, Sequence, Tuple

import mmcv
from detection import draw_predictions, load_detector
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from skeleton import describe_run, read_run, spread, train_once
from tqdm import tqdm

from mmvanilla.checkpoint import (
    check_writable,
    load_checkpoint,
    replace_when_whole,
    reserve_folder,
)
from mmvanilla.cli.checks import SETTINGS
from mmvanilla.cli.kept_runs import RESULTS, check_kept
from mmvanilla.cli.options import folder_name, one_sentence_errors, read_config
from mmvanilla.cli.tables import markdown_lines
from mmvanilla.cli.timing import describe_machine
from mmvanilla.coco_annotations import (
    FAULTS,
    OVER_THE_BORDER,
    faulty_boxes,
    list_difference,
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
    name = dict(type=annotations_name, metavar='NAME')
    parser.add_argument(
        '--train', **name, default='train', help='annotations/NAME.json to train with'
    )
    parser.add_argument('--test', **name, default='val', help='annotations/NAME.json to test with')
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
    parser.add_argument('--work-dir', type=folder_name, help='by default work_dirs/own_data/FOLDER')
    args = parser.parse_args()
    if min(args.seeds, args.epochs, *args.scale) < 1:
        parser.error('--seeds, --epochs and --scale take numbers of 1 or more')
    args.work_dir = Path(args.work_dir or f'work_dirs/own_data/{args.folder.resolve().name}')
    return args


def annotations_name(text: str) -> str:
    """NAME of annotations/NAME.json, which users may write too."""
    return Path(text).stem if text.endswith('.json') else text


def check_files(
    train: Path, test: Path, images: Path
) -> Tuple[List[str], Dict[str, Dict[str, Any]]]:
    """Reads both files of annotations, and warns about boxes with faults.

    Returns:
        The names of the classes, in the order by which MMDetection numbers them, and the images of
        both files by their names.

    Raises:
        UsageError: if a file is not as it should be, if their categories differ, or if an image is
            missing.
    """
    contents = [read_annotations(path) for path in (train, test)]
    names = [[each['name'] for each in content['categories']] for content in contents]
    if names[0] != names[1]:
        first, second = list_difference(*names)
        raise UsageError(
            f'{train} has the categories {first}, but {test} {second}: write the same into both, '
            'in one order.'
        )
    for is_test, path, content in zip((False, True), (train, test), contents):
        if not content['annotations'] or not content['categories']:
            raise UsageError(f'{path} has no annotations or no categories: add some.')
        check_boxes(path, content, is_test)
        listed = [image['file_name'] for image in content['images']]
        missing = [name for name in listed if not os.path.isfile(images / name)]
        if missing:
            raise UsageError(
                f'{images} lacks {len(missing)} images that {path} lists: {list_some(missing)}. '
                'Put them there, or take them out of the list.'
            )
        check_ids(path, content['annotations'], is_test)
    both = [{image['file_name']: image for image in each['images']} for each in contents]
    shared = set.intersection(*map(set, both))
    if shared:
        warn(f'{train} and {test} share {len(shared)} images: {list_some(sorted(shared))}')
    return names[0], {**both[0], **both[1]}


def warn(text: str) -> None:
    print(f'warning: {text}', file=sys.stderr)


def check_boxes(path: Path, content: Dict[str, Any], is_test: bool) -> None:
    """Warns about boxes with faults.

    Args:
        path: The file, for the messages.
        content: What ``read_annotations`` returns.
        is_test: Whether they are for testing instead of training.

    Raises:
        UsageError: if no box is left.
    """
    annotations = [each for each in content['annotations'] if not each.get('iscrowd')]
    faults = faulty_boxes(dict(content, annotations=annotations))
    for fault, ids in faults.items():
        warn(
            f'{path}: {len(ids)} with boxes {fault}, which are {FAULTS[fault][is_test]}: '
            f'annotations {list_some(ids)}'
        )
    over = len(faults.pop(OVER_THE_BORDER, ()))
    if over > len(annotations) / 2:
        warn(f'{path}: most boxes reach over the border: is bbox [x, y, width, height]?')
    crowds = len(content['annotations']) - len(annotations)
    if crowds:
        use = 'predictions on them do not count as wrong' if is_test else 'trained as background'
        warn(f'{path}: {crowds} annotations are of crowds (iscrowd 1): {use}')
    if len(annotations) == sum(map(len, faults.values())):
        numbers = {**{fault: len(ids) for fault, ids in faults.items()}, 'of crowds': crowds}
        found = ', '.join(f'{number} {fault}' for fault, number in numbers.items() if number)
        raise UsageError(f'{path} has no box that can be used: there are {found}.')


def check_images(folder: Path, images: Dict[str, Dict[str, Any]]) -> None:
    """Loads all images, by file name, and warns about those of another size than annotated.

    Raises:
        UsageError: if one cannot be loaded.
    """
    others = []
    for name, image in tqdm(images.items(), desc='checking images', unit='image'):
        try:
            (folder / name).open('rb').close()
            pixels = mmcv.imread(str(folder / name))  # as MMDetection does
        except OSError as error:
            raise UsageError(f'{folder / name} cannot be read: {error.strerror}.') from None
        except Exception:
            pixels = None
        if pixels is None:
            raise UsageError(f'{folder / name} cannot be loaded: put a whole image there.')
        if pixels.shape[:2] != (image['height'], image['width']):
            others.append(name)
    if others:
        warn(
            f'{len(others)} images have another height and width than annotated: '
            f'{list_some(others)}'
        )


def check_ids(path: Path, annotations: Sequence[Dict[str, Any]], is_test: bool) -> None:
    """Raises UsageError if pycocotools cannot use ids, or counts right boxes as wrong by them."""
    ids = [annotation.get('id') for annotation in annotations]
    if None in ids or len(set(ids)) < len(ids):
        raise UsageError(
            f'{path}: an annotation has no id, or the id of another: number them from 1.'
        )
    if is_test and not all(isinstance(each, int) and each for each in ids):
        raise UsageError(
            f'{path}: an annotation has the id 0, which pycocotools takes for none, or one that is '
            'no whole number: number them from 1.'
        )
    if is_test and not all('iscrowd' in annotation for annotation in annotations):
        raise UsageError(f'{path}: an annotation has no iscrowd, which pycocotools needs: add 0.')


def digest(files: Sequence[Path], folder: Path, images: Iterable[str]) -> str:
    """A digest of the annotations, and of the names and sizes of the images in a folder."""
    found = hashlib.sha256()
    for path in files:
        found.update(path.read_bytes())
    for name in sorted(images):
        found.update(f'{name} {(folder / name).stat().st_size} '.encode())
    return found.hexdigest()


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


class Detector(NamedTuple):
    """A detector that is compared: its config, the file to write it to, and its runs."""

    path: Path
    config: Config
    data: str  # their digest

    def folder(self, seed: int) -> Path:
        return self.path.with_suffix('') / str(seed)

    def asked(self, seed: int) -> Dict[str, Any]:
        """What the run with a seed depends on."""
        return describe_run(self.config.pretty_text, seed, self.data)

    def kept_seeds(self) -> List[int]:
        """The seeds of which there are finished runs."""
        names = [path.parent.name for path in self.path.with_suffix('').glob(f'*/{RESULTS}')]
        return sorted(int(name) for name in names if name.isdigit())


def check_outputs(detectors: Iterable[Detector], work_dir: Path) -> None:
    """Raises UsageError if files would be overwritten that this command did not write so."""
    taken = []
    configs = [detector.path for detector in detectors if detector.path.exists()]
    for path, config, _ in detectors:
        if path in configs and not (
            path.is_file() and path.read_text('utf-8') == config.pretty_text
        ):
            taken.append(path)
    if not configs:
        others = [detector.path.with_suffix('.png') for detector in detectors]
        taken = [path for path in (work_dir / 'results.md', *others) if path.exists()]
    if taken:
        raise UsageError(
            f'{list_some(taken)} would be overwritten, but may be yours: move it, or name another '
            '--work-dir.'
        )


def describe(detector: Detector, scale: Sequence[int]) -> List[Any]:
    """The columns of ``HEAD`` about all runs of a detector, but for its name."""
    runs = [read_run(detector.folder(seed)) for seed in detector.kept_seeds()]
    counted = count(detector.config, (scale[1], scale[0]), deploy=True)
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


def train(detectors: Iterable[Detector], seeds: int) -> None:
    """Trains what is not there yet, the detectors by turns."""
    for detector in detectors:
        detector.config.dump(detector.path)
    for seed, detector in product(range(seeds), detectors):
        run = train_once(detector.folder(seed), detector.asked(seed))
        if METRICS[0] not in run.metrics:
            warn(f'{run.folder} detects nothing on the test images: its AP counts as 0')


def draw(detector: Detector) -> None:
    """Draws predictions of a detector's first run, fused if it can be."""
    run = read_run(detector.folder(detector.kept_seeds()[0]))
    dataset = DATASETS.build(detector.config.test_dataloader.dataset)
    model = load_detector(run.fused if run.fused.exists() else run.trained)
    draw_predictions(model, dataset, detector.path.with_suffix('.png'))


def main() -> None:
    args = parse_args()
    if not (args.folder / 'annotations').exists() and (args.folder / 'JPEGImages').exists():
        raise UsageError(
            f'{args.folder} is in the format of Pascal VOC: convert it with '
            'tools/dataset_converters/voc_to_coco.py first.'
        )
    files = [args.folder / f'annotations/{name}.json' for name in (args.train, args.test)]
    classes, images = check_files(*files, args.folder / 'images')
    data = digest(files, args.folder / 'images', images)
    detectors = {}
    for names in product(DETECTORS, BACKBONES):
        path = args.work_dir / f'{"_".join(names)}.py'
        detectors[names] = Detector(path, make_config(path.stem, args, classes), data)
    chosen = [detectors[names] for names in product(args.detectors, args.backbones)]
    check_kept(
        {
            detector.folder(seed): detector.asked(seed)
            for detector in detectors.values()
            for seed in {*detector.kept_seeds(), *range(args.seeds)}
        }
    )
    check_outputs(chosen, args.work_dir)
    if not all(set(range(args.seeds)) <= set(each.kept_seeds()) for each in chosen):
        check_images(args.folder / 'images', images)
    check_writable(str(args.work_dir), is_folder=True)
    reserve_folder(args.work_dir)
    train(chosen, args.seeds)
    kept = {names: each for names, each in detectors.items() if each.kept_seeds()}
    rows = ([*names, *describe(detector, args.scale)] for names, detector in kept.items())
    table = '\n'.join(markdown_lines(HEAD, rows))
    with replace_when_whole(args.work_dir / 'results.md') as temporary:
        temporary.write_text(f'{describe_machine(get_device())}\n\n{table}\n')
    print(f'\n{table}\n')
    init_default_scope('mmdet')
    for detector in kept.values():
        draw(detector)
    print(f'This table and pictures (truth left, predictions right): {args.work_dir}')


if __name__ == '__main__':
    with one_sentence_errors():
        main()
