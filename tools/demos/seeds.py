"""Trains the demos' networks with several seeds: how much their results vary.

The networks take turns. Finished runs are kept in the work dir and not repeated.
"""

import argparse
from pathlib import Path
from statistics import median
from typing import Dict, Iterator, List, NamedTuple

from skeleton import Run, describe_run, spread, train_once

from mmvanilla.checkpoint import reserve_folder
from mmvanilla.cli.kept_runs import check_kept
from mmvanilla.cli.options import folder_name, one_sentence_errors, read_config
from mmvanilla.cli.running import read_log
from mmvanilla.cli.tables import print_table


class Network(NamedTuple):
    """A config, and its metrics by what they are called here, with the format of their values."""

    config: str
    metrics: Dict[str, str]
    form: str


AP = {'box AP': 'coco/bbox_mAP'}
NETWORKS = {
    'retinanet': Network('retinanet_vanillanet-6_digits', AP, '.3f'),
    'retinanet-merged': Network('retinanet_vanillanet-6_merged_digits', AP, '.3f'),
    'mask_rcnn': Network(
        'mask_rcnn_vanillanet-6_digits', {**AP, 'mask AP': 'coco/segm_mAP'}, '.3f'
    ),
    'upernet': Network('upernet_vanillanet-6_digits', {'mIoU (%)': 'mIoU'}, '.2f'),
    'classifier': Network('vanillanet-6_digits', {'top-1 (%)': 'accuracy/top1'}, '.2f'),
}
HEAD = (
    *('network', 'metric', 'in training form', 'fused', 'by seed'),
    *('minutes of training', 'seconds a step at the end'),
)


def seconds_at_end(run: Run) -> float:
    """The median time of a step in the last tenth of a run."""
    times = [line['time'] for line in read_log(run.folder) if 'loss' in line]
    return median(times[-max(1, len(times) // 10) :])


def rows(name: str, runs: List[Run]) -> Iterator[List[str]]:
    """The rows of ``HEAD`` about a network."""
    _, metrics, form = NETWORKS[name]
    for metric, key in metrics.items():
        # There is no AP if nothing is detected.
        values = [run.metrics.get(key, 0.0) for run in runs]
        yield [
            *(name, metric, spread(values, form)),
            spread([run.fused_metrics.get(key, 0.0) for run in runs], form),
            ', '.join(format(value, form) for value in values),
            f'{median(run.minutes for run in runs):.1f}',
            f'{median(map(seconds_at_end, runs)):.3f}',
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('networks', nargs='*', help=f'of {", ".join(NETWORKS)}; by default all')
    parser.add_argument('--seeds', type=int, default=3, help='number of seeds')
    parser.add_argument('--work-dir', type=folder_name, default='work_dirs/demo_seeds')
    args = parser.parse_args()
    names = list(dict.fromkeys(args.networks or NETWORKS))
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        parser.error(f'no network is called {unknown[0]}: choose of {", ".join(NETWORKS)}')
    if args.seeds < 1:
        parser.error('--seeds takes 1 or more')
    folders = {
        name: [Path(args.work_dir, f'{name}_{seed}') for seed in range(args.seeds)]
        for name in names
    }
    texts = {
        name: read_config(f'configs/digits/{NETWORKS[name].config}.py').pretty_text
        for name in names
    }
    asked = {
        folders[name][seed]: describe_run(texts[name], seed)
        for seed in range(args.seeds)
        for name in names
    }
    check_kept(asked)
    reserve_folder(args.work_dir)
    runs = {folder: train_once(folder, each) for folder, each in asked.items()}
    print()
    own = ((name, [runs[folder] for folder in folders[name]]) for name in names)
    print_table(HEAD, (row for name, each in own for row in rows(name, each)))


if __name__ == '__main__':
    with one_sentence_errors():
        main()
