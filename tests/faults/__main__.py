"""Runs all faults and prints the table of ``docs/reliability.md``: ``make test-faults``."""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, Iterator, Tuple

os.environ['CUDA_VISIBLE_DEVICES'] = ''
sys.path.insert(0, str(Path(__file__).parents[1]))

# Before the forks, so that they need not import them.
import mmdet.apis  # noqa: F401
import mmpretrain.apis  # noqa: F401
import torch
from helpers.programs import ROOT, run_python

from faults import damaged_files, kills, machines, wrong_configs
from mmvanilla.cli.tables import print_table


def make_data(folder: Path) -> Tuple[Path, Path]:
    """Digits in COCO's layout, and in folders by class."""
    coco, folders = folder / 'coco', folder / 'folders'
    counts = ('--num-train=16', '--num-val=4')
    run_python('tools/dataset_converters/digits_to_coco.py', coco, *counts)
    counts = ('--num-train=24', '--num-val=20')
    run_python('tools/dataset_converters/digits_to_folders.py', folders, *counts)
    return coco, folders


def run_all(folder: Path, rng: random.Random) -> Iterator[Tuple[str, Dict[str, int]]]:
    coco, folders = make_data(folder)
    config, checkpoints = kills.make_runs(folders, folder / 'runs')
    merged = checkpoints['merged']
    yield 'disks, memory, people', machines.run_all(config, merged, folder / 'machines', rng)
    yield from damaged_files.run_all(config, checkpoints, folder / 'files', rng).items()
    yield 'kills of a run', kills.run_all(config, folder / 'kills', rng)
    yield 'wrong configs', wrong_configs.run_all(coco, folders, folder / 'configs')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seed', type=int, default=0, help='of what is chosen at random')
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.chdir(ROOT)
    start, failed = time.monotonic(), 0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, counts in run_all(Path(folder), random.Random(args.seed)):
            bad = {kind: n for kind, n in counts.items() if kind in FAULTS}
            good = {kind: n for kind, n in counts.items() if kind not in FAULTS}
            failed += sum(bad.values())
            rows.append((name, *(', '.join(f'{n} {k}' for k, n in c.items()) for c in (good, bad))))
    print_table(['fault', 'tried', 'went wrong'], rows)
    print(f'Seed {args.seed}, {(time.monotonic() - start) / 60:.0f} minutes.')
    sys.exit(failed > 0)


# Counts of what must not happen.
FAULTS = ('lost', 'lost best', 'leftovers', 'tracebacks', 'unclear', 'accepted')

if __name__ == '__main__':
    main()
