"""Why orderings of the paper come out otherwise on the digits: one factor changed at a time.

Trains rows of Tables 1 to 3 as ablations.py does, but longer, wider, on larger maps, and so on,
with several seeds. Finished runs are not repeated. Prints the accuracies, and which of the paper's
orderings hold in each setting; writes them to the work dir, a file for each setting.
"""

import argparse
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Dict, Iterator, List

from ablations import (
    DEVICE,
    DIGITS_CONFIGS,
    HEAD_OF_ORDERINGS,
    JOBS,
    WORK_DIR,
    Setting,
    compare,
    epochs_of,
    read_rows,
    run_folder,
    train_all,
)

from mmvanilla.checkpoint import replace_when_whole, reserve_folder
from mmvanilla.cli.options import one_sentence_errors, read_config
from mmvanilla.cli.running import read_log
from mmvanilla.cli.tables import markdown_lines
from mmvanilla.cli.timing import describe_machine

# Rows that Table 1 has under other names
COMMON = {
    ('VanillaNet-6', 'deep training'): 'n = 0',
    ('VanillaNet-6', 'both'): 'n = 3',
    ('VanillaNet-6', 'no shortcut'): 'n = 3',
}
WITHOUT_LAMBDA = ('neither', 'series activation')
# The rows that are compared
PAIRS = [
    *(('n = 3', 'n = 1'), ('n = 2', 'n = 1'), ('n = 3', 'n = 2'), ('n = 4', 'n = 3')),
    *(('n = 0', 'neither'), ('n = 3', 'series activation')),
    *(('n = 3', 'shortcut before act'), ('shortcut before act', 'shortcut after act')),
    *(('deep training', 'neither'), ('both', 'series activation')),
]
SETTINGS = {
    'as-in-tables': Setting(),
    'length-3': Setting(length=3),
    'length-10': Setting(length=10),
    'length-30': Setting(length=30),
    'images-9': Setting(images=57600),  # each is seen once instead of 9 times
    # Towards ImageNet, where each image is seen 300 times
    'images-9-length-3': Setting(images=57600, length=3),
    'images-9-length-9': Setting(images=57600, length=9),
    'lambda-early': Setting(lambda_share=1 / 9),  # instead of a third
    'lambda-late': Setting(lambda_share=2 / 3),
    # Maps of 16x16 and 8x8 instead of 16x16 to 2x2; ImageNet's are of 56x56 to 7x7
    'large-maps': Setting(
        options={
            'model.backbone.arch': dict(
                _delete_=True, channels=[512, 1024, 2048, 4096, 4096], strides=[2, 1, 1, 1]
            ),
            'model.backbone.out_indices': (1,),  # there are only two stages
        }
    ),
    'width-2': Setting(
        options={'model.backbone.widen_factor': 1 / 16, 'model.head.in_channels': 256}
    ),
    'width-4': Setting(
        options={'model.backbone.widen_factor': 1 / 8, 'model.head.in_channels': 512}
    ),
    'rate-half': Setting(options={'optim_wrapper.optimizer.lr': 0.005}),
    'rate-twice': Setting(options={'optim_wrapper.optimizer.lr': 0.02}),
    'no-decay': Setting(options={'optim_wrapper.optimizer.weight_decay': 0.0}),
    'shifted-images': Setting(
        options={
            'train_dataloader.dataset.pipeline': [
                dict(type='LoadImageFromFile'),
                dict(type='RandomCrop', crop_size=64, padding=6),
                dict(type='PackInputs'),
            ]
        }
    ),
}
# Those of --long
LONG = [
    *('length-3', 'length-10', 'length-30', 'images-9-length-3', 'images-9-length-9'),
    *('lambda-early', 'large-maps', 'width-2', 'width-4', 'rate-half', 'rate-twice', 'no-decay'),
    'shifted-images',
]
# The rows that are trained by default, of each network
ROWS: Dict[str, List[str]] = {
    'VanillaNet-6': ['n = 0', 'n = 1', 'n = 3', 'neither', 'series activation'],
    'AlexNet': ['neither', 'deep training', 'series activation', 'both'],
    'ResNet-50': ['neither', 'deep training', 'series activation', 'both'],
}
HEAD = ['setting', 'row', 'top-1', 'training loss', 'by seed']


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--settings',
        nargs='+',
        choices=SETTINGS,
        metavar='SETTING',
        help=f'of {", ".join(SETTINGS)}; by default all but {", ".join(LONG)}',
    )
    parser.add_argument('--long', action='store_true', help='take those left out by default')
    parser.add_argument('--network', choices=ROWS, default=list(ROWS)[0])
    parser.add_argument(
        '--rows', nargs='+', metavar='ROW', help='of Tables 1 to 3; by default the main ones'
    )
    parser.add_argument('--seeds', type=int, default=5, help='number of seeds')
    parser.add_argument('--jobs', type=int, default=JOBS, help='runs at a time')
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error('--seeds takes 2 or more: one run has no standard deviation')
    if args.jobs < 1:
        parser.error('--jobs takes 1 or more')
    fitting = [name for name in SETTINGS if fits(args.network, SETTINGS[name])]
    own = [name for name in args.settings or () if name not in fitting]
    if own:
        parser.error(f'{args.network} has no setting {own[0]!r}: choose of {", ".join(fitting)}')
    args.settings = args.settings or [name for name in fitting if (name in LONG) == args.long]
    args.rows = args.rows or ROWS[args.network]
    known = rows_of(args.network)
    unknown = [name for name in args.rows if name not in known]
    if unknown:
        parser.error(f'{args.network} has no row {unknown[0]!r}: choose of {", ".join(known)}')
    args.rows = {name: known[name] for name in args.rows}
    return args


def fits(network: str, setting: Setting) -> bool:
    """Whether a network has a setting: its model, optimizer and number of epochs allow it."""
    parts = ('model.', 'optim_wrapper.optimizer.lr')
    if any(key.startswith(parts) for key in setting.options):
        return network == 'VanillaNet-6'
    cfg = read_config(DIGITS_CONFIGS / f'{network.lower()}_cluttered.py')
    return epochs_of(cfg, setting).is_integer()


def rows_of(network: str) -> Dict[str, Dict[str, str]]:
    """The rows of a network in Tables 1 to 3, by their names; common ones once."""
    return {
        row['row']: row
        for row in read_rows([1, 2, 3])
        if row['network'] == network and (network, row['row']) not in COMMON
    }


def orderings(accuracies: Dict[str, List[float]], paper: Dict[str, float]) -> Iterator[List[str]]:
    """The orderings of ``PAIRS`` among rows that were trained, as ``HEAD_OF_ORDERINGS`` has it."""
    for pair in PAIRS:
        if all(name in accuracies for name in pair):
            (line,) = compare({name: accuracies[name] for name in pair}, paper)
            yield line.cells()


def folder_of(name: str, row: str) -> str:
    """The folder of a row's runs in a setting: the tables', if the setting does not change them."""
    setting = SETTINGS[name]
    same = setting.lambda_share is not None and row in WITHOUT_LAMBDA
    return '' if same or setting == Setting() else name


def train_rows(name: str, rows: Dict[str, str], seeds: int, jobs: int) -> Dict[str, List[float]]:
    """The accuracies of rows (names to configs) in a setting, by seed."""
    found = {}
    for folder in dict.fromkeys(folder_of(name, row) for row in rows):
        configs = [config for row, config in rows.items() if folder_of(name, row) == folder]
        setting = SETTINGS[name] if folder else Setting()
        found.update(train_all(configs, seeds, jobs, folder, setting))
    return {row: found[config] for row, config in rows.items()}


def training_loss(folder: Path) -> float:
    """The loss at the end of a run: the mean of the last five in its log."""
    return mean([line['loss'] for line in read_log(folder) if 'loss' in line][-5:])


def main() -> None:
    args = parse_args()
    reserve_folder(WORK_DIR)
    paper = {name: float(row['top-1']) for name, row in args.rows.items()}
    configs = {name: row['config'] for name, row in args.rows.items()}
    for name in args.settings:
        print(f'{name}:', file=sys.stderr)
        accuracies = train_rows(name, configs, args.seeds, args.jobs)
        lines = []
        for row, values in accuracies.items():
            runs = [
                run_folder(configs[row], seed, folder_of(name, row)) for seed in range(args.seeds)
            ]
            lines.append(
                [
                    *(name, row, f'{mean(values):.2f} ± {stdev(values):.2f}'),
                    f'{mean(map(training_loss, runs)):.3f}',
                    ', '.join(f'{value:.2f}' for value in values),
                ]
            )
        ordered = [[name, *line] for line in orderings(accuracies, paper)]
        tables = [
            markdown_lines(HEAD, lines),
            markdown_lines(['setting', *HEAD_OF_ORDERINGS], ordered),
        ]
        text = '\n\n'.join([describe_machine(DEVICE), *map('\n'.join, tables)])
        path = WORK_DIR / f'factors_{args.network}_{name}.md'
        with replace_when_whole(path) as temporary:
            temporary.write_text(text + '\n')
        print(f'\n{text}\n\nThese tables are in {path}.\n', flush=True)


if __name__ == '__main__':
    with one_sentence_errors():
        main()
