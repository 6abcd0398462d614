"""Why orderings of the paper come out otherwise on the digits: one factor changed at a time.

Trains rows of Tables 1 and 2 as ablations.py does, but longer, wider, on larger maps, and so on,
with several seeds. Finished runs are not repeated. Prints the accuracies, and which of the paper's
orderings hold in each setting; writes them to the work dir, setting by setting.
"""

import argparse
import os
import sys
from statistics import mean, stdev
from typing import Dict, Iterator, List

from ablations import DEVICE, WORK_DIR, Setting, compare, read_rows, train_all

from mmvanilla.checkpoint import replace_when_whole
from mmvanilla.cli.options import one_sentence_errors
from mmvanilla.cli.tables import markdown_lines
from mmvanilla.cli.timing import describe_machine

NETWORK = 'VanillaNet-6'
# The rows of VanillaNet-6 in Tables 1 and 2, without their common ones twice.
COMMON = {'deep training': 'n = 0', 'both': 'n = 3'}
# The orderings that are looked at: what is better in the paper first.
ORDERINGS = [
    *(('n = 3', 'n = 1'), ('n = 2', 'n = 1'), ('n = 3', 'n = 2'), ('n = 4', 'n = 3')),
    *(('n = 0', 'neither'), ('n = 3', 'series activation')),
]
SHIFT = 6  # pixels of 64
LOAD, PACK = dict(type='LoadImageFromFile'), dict(type='PackInputs')


def train_with(*transforms: dict) -> Dict[str, List[dict]]:
    """The option that sets transforms of the training images."""
    return {'train_dataloader.dataset.pipeline': [LOAD, *transforms, PACK]}


SETTINGS = {
    'as in the tables': Setting(),
    '3 times as long': Setting(length=3),
    '10 times as long': Setting(length=10),
    '30 times as long': Setting(length=30),
    'λ = 1 after a ninth': Setting(lambda_share=1 / 9),
    'λ = 1 after two thirds': Setting(lambda_share=2 / 3),
    # 16x16 to 8x8 positions instead of 16x16 to 2x2: ImageNet's are 56x56 to 7x7
    'maps of 8x8 at the end': Setting(
        options={
            'model.backbone.arch': dict(
                _delete_=True, channels=[512, 1024, 2048, 4096, 4096], strides=[1, 1, 2, 1]
            ),
            'model.backbone.out_indices': (1,),  # there are only two stages
        }
    ),
    'twice as wide': Setting(
        options={'model.backbone.widen_factor': 1 / 16, 'model.head.in_channels': 256}
    ),
    '4 times as wide': Setting(
        options={'model.backbone.widen_factor': 1 / 8, 'model.head.in_channels': 512}
    ),
    'without weight decay': Setting(options={'optim_wrapper.optimizer.weight_decay': 0.0}),
    'images shifted at random': Setting(
        options=train_with(dict(type='RandomCrop', crop_size=64, padding=SHIFT))
    ),
}
HEAD = ['setting', 'row', 'top-1', 'by seed']
HEAD_OF_ORDERINGS = ['setting', 'in the paper', 'by', 'here: by', 'verdict']


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--settings', nargs='+', choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument('--rows', nargs='+', help="rows' names in Tables 1 and 2; by default all")
    parser.add_argument('--seeds', type=int, default=5, help='number of seeds')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='runs at a time')
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error('--seeds takes 2 or more: one run has no standard deviation')
    if args.jobs < 1:
        parser.error('--jobs takes 1 or more')
    unknown = set(args.rows or ()) - set(rows_of_network())
    if unknown:
        parser.error(f'--rows takes {", ".join(rows_of_network())}, not {", ".join(unknown)}')
    return args


def rows_of_network() -> Dict[str, Dict[str, str]]:
    """The rows of Tables 1 and 2 of VanillaNet-6, by their names."""
    return {
        row['row']: row
        for row in read_rows([1, 2])
        if row['network'] == NETWORK and row['row'] not in COMMON
    }


def orderings(accuracies: Dict[str, List[float]], paper: Dict[str, float]) -> Iterator[List[str]]:
    """The orderings of those rows that were trained, with verdicts."""
    for pair in ORDERINGS:
        if all(name in accuracies for name in pair):
            ((name, by, here, verdict),) = compare({each: accuracies[each] for each in pair}, paper)
            yield [name, f'{by:.2f}', f'{here:.2f}', verdict]


def main() -> None:
    args = parse_args()
    rows = {name: row for name, row in rows_of_network().items() if name in (args.rows or [name])}
    paper = {name: float(row['top-1']) for name, row in rows.items()}
    configs = {name: row['config'] for name, row in rows.items()}
    lines, ordered = [], []
    for name in args.settings:
        print(f'{name}:', file=sys.stderr)
        setting = SETTINGS[name]
        folder = '' if setting == Setting() else name.replace(' ', '_')
        found = train_all(list(configs.values()), args.seeds, args.jobs, folder, setting)
        accuracies = {row: found[config] for row, config in configs.items()}
        for row, values in accuracies.items():
            by_seed = ', '.join(f'{value:.2f}' for value in values)
            lines.append([name, row, f'{mean(values):.2f} ± {stdev(values):.2f}', by_seed])
        ordered += [[name, *line] for line in orderings(accuracies, paper)]
        text = '\n\n'.join(
            [
                f'{describe_machine(DEVICE)}',
                '\n'.join(markdown_lines(HEAD, lines)),
                '\n'.join(markdown_lines(HEAD_OF_ORDERINGS, ordered)),
            ]
        )
        with replace_when_whole(WORK_DIR / 'factors.md') as temporary:
            temporary.write_text(text + '\n')
    print(f'{text}\n\nThese tables are in {WORK_DIR}/factors.md.')


if __name__ == '__main__':
    with one_sentence_errors():
        main()
