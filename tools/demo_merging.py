"""Trains the digits detector in deep form throughout and merged once λ = 1, with several seeds.

The two take turns. What was run before is not run again: remove the folder to start anew.
"""

import argparse
import json
import shutil
from pathlib import Path
from statistics import mean, median
from typing import Dict

from demo_steps import evaluate, read_log, run_tool

from mmvanilla.checkpoint import latest_whole_checkpoint, replace_when_whole

CONFIGS = {
    'deep': 'configs/digits/retinanet_vanillanet-6_digits.py',
    'merged': 'configs/digits/retinanet_vanillanet-6_merged_digits.py',
}
WORK_DIR = Path('work_dirs/demo_merging')
ROW = '{:8} {:>5} {:>7} {:>9} {:>12} {:>12}'


def run(form: str, seed: int) -> Dict[str, float]:
    """AP, AP of the fused network, and times of a training run and of its last epoch's steps."""
    folder = WORK_DIR / f'{form}_{seed}'
    results = folder / 'results.json'
    if results.exists():
        return json.loads(results.read_text())
    config = CONFIGS[form]
    options = ['--work-dir', str(folder), '--cfg-options', f'randomness.seed={seed}']
    shutil.rmtree(folder, ignore_errors=True)
    minutes = run_tool('train', config, *options) / 60
    trained = latest_whole_checkpoint(folder)
    fused = trained.with_name(f'{trained.stem}_deploy.pth')
    log = [line for line in read_log(folder) if 'loss' in line]
    found = dict(
        ap=evaluate(config, trained, folder / 'test')['coco/bbox_mAP'],
        fused_ap=evaluate(config, fused, folder / 'test_deploy', '--deploy')['coco/bbox_mAP'],
        minutes=minutes,
        seconds_per_step=median(line['time'] for line in log if line['epoch'] == log[-1]['epoch']),
    )
    with replace_when_whole(results) as temporary:
        temporary.write_text(json.dumps(found))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seeds', type=int, default=3, help='how many')
    seeds = range(parser.parse_args().seeds)
    found = {(form, seed): run(form, seed) for seed in seeds for form in CONFIGS}
    print('\n' + ROW.format('form', 'seed', 'AP', 'AP fused', 'training', 'last steps'))
    for form in CONFIGS:
        runs = {seed: found[form, seed] for seed in seeds}
        means = {key: mean(each[key] for each in runs.values()) for key in runs[0]}
        for seed, each in (runs | {'mean': means}).items():
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
