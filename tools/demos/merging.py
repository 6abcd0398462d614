"""Trains the digits detector in deep form throughout and merged once λ = 1, with several seeds.

The two take turns. Finished runs are kept and not repeated: remove the folder to start over.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, median
from typing import Dict

from skeleton import train_and_evaluate

from mmvanilla.checkpoint import replace_when_whole
from mmvanilla.cli.running import read_log

CONFIGS = {
    'deep': 'configs/digits/retinanet_vanillanet-6_digits.py',
    'merged': 'configs/digits/retinanet_vanillanet-6_merged_digits.py',
}
WORK_DIR = Path('work_dirs/demo_merging')
AP = 'coco/bbox_mAP'
ROW = '{:8} {:>5} {:>7} {:>9} {:>12} {:>12}'


def train(form: str, seed: int) -> Dict[str, float]:
    """AP, AP of the fused network, and times of a training run and of its last epoch's steps."""
    folder = WORK_DIR / f'{form}_{seed}'
    results = folder / 'results.json'
    if results.exists():
        return json.loads(results.read_text())
    run = train_and_evaluate(CONFIGS[form], folder, '--cfg-options', f'randomness.seed={seed}')
    log = [line for line in read_log(folder) if 'loss' in line]
    found = dict(
        ap=run.metrics[AP],
        fused_ap=run.fused_metrics[AP],
        minutes=run.minutes,
        seconds_per_step=median(line['time'] for line in log if line['epoch'] == log[-1]['epoch']),
    )
    with replace_when_whole(results) as temporary:
        temporary.write_text(json.dumps(found))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seeds', type=int, default=3, help='number of seeds')
    seeds = range(parser.parse_args().seeds)
    found = {(form, seed): train(form, seed) for seed in seeds for form in CONFIGS}
    print('\n' + ROW.format('form', 'seed', 'AP', 'AP fused', 'training', 'last steps'))
    for form in CONFIGS:
        runs = {seed: found[form, seed] for seed in seeds}
        means = {key: mean(each[key] for each in runs.values()) for key in runs[0]}
        for seed, each in {**runs, 'mean': means}.items():
            print(
                ROW.format(
                    form,
                    seed,
                    f'{each["ap"]:.3f}',
                    f'{each["fused_ap"]:.3f}',
                    f'{each["minutes"]:.2f} min',
                    f'{each["seconds_per_step"]:.3f} s',
                )
            )


if __name__ == '__main__':
    main()
