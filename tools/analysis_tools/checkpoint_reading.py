"""Times reading a checkpoint: with all checks, without checksums, and by torch itself."""

import argparse
import os
import tempfile
from pathlib import Path

import torch

from mmvanilla.checkpoint import load_checkpoint
from mmvanilla.cli.options import one_sentence_errors
from mmvanilla.cli.timing import describe_machine, time_by_turns


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--megabytes', type=int, default=300, help='size of the file')
    parser.add_argument('--rounds', type=int, default=7, help='measurements of each')
    return parser.parse_args()


def without_checksums(path: Path) -> None:
    os.environ['MMVANILLA_SKIP_CHECKSUMS'] = '1'
    load_checkpoint(path)
    del os.environ['MMVANILLA_SKIP_CHECKSUMS']


def main() -> None:
    args = parse_args()
    weights = {f'{i}.weight': torch.rand(512, 512) for i in range(args.megabytes)}  # 1 MiB each
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'weights.pth')
        torch.save(dict(state_dict=weights), path)
        functions = {
            'all checks': lambda: load_checkpoint(path),
            'no checksums': lambda: without_checksums(path),
            'torch.load': lambda: torch.load(path, map_location='cpu'),
        }
        times = time_by_turns(list(functions.values()), args.rounds)
    print(f'{args.megabytes} MiB, {describe_machine("cpu")}')
    for name, seconds in zip(functions, times):
        print(f'{name:13} {seconds:.2f} s, {seconds / times[-1]:.2f} times torch.load')


if __name__ == '__main__':
    with one_sentence_errors():
        main()
