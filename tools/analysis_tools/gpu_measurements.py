"""Measures on an NVIDIA GPU all that the docs say of GPUs, in steps of at most ten minutes.

A bare machine is enough: Python with torch, the packages of requirements/gpu as wheels in a folder
(tools/gpu_wheels.sh makes it), and no network. Each step writes STEP.json to the work dir, with the
tables that its commands print; --print shows them. Finished steps are not repeated.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any, Dict, List

ROOT = Path(__file__).parents[2]
SITE = 'site'  # in the work dir: the installed wheels
LIMIT = 590  # seconds of a step
OURS = 'vanillanet-5_in1k vanillanet-9_in1k vanillanet-13_in1k'
PRECISIONS = ('float32', 'tf32', 'bfloat16')
TABLE4 = (
    'tools/paper/table4.py --forms deploy graph --rounds 50 --precision {0} --layout {1} '
    '--csv {{out}}/table4_{0}_{1}.csv --figure3 {{out}}/figure3_{0}_{1}.png'
)
TRAINING = 'tools/analysis_tools/benchmark.py {} --task training --batch-size 32 --precision {}'
INFERENCE = f'tools/analysis_tools/benchmark.py {OURS} --rounds 50 --precision {{}} --forms '
COST = 'tools/analysis_tools/training_cost.py '
ABLATIONS = ' '.join(
    str(path.relative_to(ROOT)) for path in sorted(ROOT.glob('configs/ablations/*_in1k.py'))
)
# Commands by step, without python; {out} is the work dir. In the order of their importance.
STEPS: Dict[str, List[str]] = {
    'tests': ['-m pytest -m gpu tests/gpu'],
    'table4': [TABLE4.format(precision, 'contiguous') for precision in PRECISIONS],
    'training': [
        *(TRAINING.format(OURS, precision) for precision in ('float32', 'float16', 'bfloat16')),
        TRAINING.format('vanillanet-13_in1k', 'bfloat16')
        + ' --forms plain deep-cp merged merged-cp merged-compiled',
    ],
    'table5': [
        f'tools/paper/table5.py --rounds 50 {options}'
        for options in (
            '',
            '--precision tf32',
            '--precision float16',
            # As many boxes as there can be, instead of next to none
            '--cfg-options model.test_cfg.score_thr=0.0 model.test_cfg.rcnn.score_thr=0.0',
        )
    ],
    'activation': [
        'tools/analysis_tools/series_activation.py --rounds 30 --dtypes float32 float16 bfloat16'
    ],
    'table4-channels-last': [TABLE4.format(precision, 'channels_last') for precision in PRECISIONS],
    'inference': [
        INFERENCE.format(precision) + 'plain-deploy plain-graph deploy graph optimized'
        for precision in PRECISIONS
    ],
    'costs': [
        f'{COST}{ABLATIONS} configs/imagenet/vanillanet-6_8xb128_in1k.py --batch-size 64{amp}'
        for amp in ('', ' --amp')
    ]
    + [f'{COST}configs/retinanet_vanillanet13.py configs/mask_rcnn_vanillanet13.py --batch-size 2'],
    'amp': [
        'tools/dataset_converters/digits_to_coco.py data/digits',
        'tools/train.py configs/digits/retinanet_vanillanet-6_digits.py --amp --work-dir {out}/amp',
    ],
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('steps', nargs='*', metavar='STEP', help=f'of {", ".join(STEPS)}')
    parser.add_argument('--wheels', type=Path, help='folder of wheels to install first')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/gpu'))
    parser.add_argument('--print', action='store_true', help="print the steps' tables instead")
    args = parser.parse_args()
    unknown = [step for step in args.steps if step not in STEPS]
    if unknown:
        parser.error(f'no step is called {unknown[0]}: choose of {", ".join(STEPS)}')
    args.steps = args.steps or list(STEPS)
    return args


def install(wheels: Path, site: Path) -> None:
    """Installs wheels beside what the machine has, and nothing else."""
    files = sorted(map(str, wheels.glob('*.whl')))
    if not files:
        sys.exit(f'{wheels} has no wheels: make them with tools/gpu_wheels.sh.')
    options = ['-q', '--no-index', '--no-deps', '--upgrade', '--target', str(site)]
    subprocess.run([sys.executable, '-m', 'pip', 'install', *options, *files], check=True)


def read_tables(text: str) -> List[List[List[str]]]:
    """The cells of the Markdown tables in a text, without the lines below their heads."""
    tables: List[List[List[str]]] = []
    before = ''
    for line in text.splitlines():
        if line.startswith('|'):
            if not before.startswith('|'):
                tables.append([])
            cells = [cell.strip() for cell in line.strip('|').split('|')]
            if set(''.join(cells)) != {'-'}:
                tables[-1].append(cells)
        before = line
    return tables


def run(command: str, seconds: float, environment: Dict[str, str]) -> Dict[str, Any]:
    """What a command printed, how it ended (None: at the limit), and how long it took."""
    start = time.perf_counter()
    try:
        ended = subprocess.run(
            [sys.executable, *shlex.split(command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
            timeout=seconds,
        )
        code, output = ended.returncode, ended.stdout
    except subprocess.TimeoutExpired as error:
        code, output = None, error.output or b''
    text = output.decode(errors='replace')
    return dict(
        command=f'python {command}',
        code=code,
        seconds=round(time.perf_counter() - start, 1),
        tables=read_tables(text),
        output=text[-20_000:],
    )


def do_step(step: str, work_dir: Path, environment: Dict[str, str]) -> bool:
    """Does a step unless it has been done; returns whether all its commands ended well."""
    path = work_dir / f'{step}.json'
    if path.exists() and json.loads(path.read_text())['is_whole']:
        print(f'{step}: done before, see {path}')
        return True
    end = time.perf_counter() + LIMIT
    found = dict(step=step, date=date.today().isoformat(), is_whole=False, commands=[])
    for command in STEPS[step]:
        command = command.format(out=shlex.quote(str(work_dir)))
        print(f'{step}: {command}', flush=True)
        found['commands'].append(run(command, end - time.perf_counter(), environment))
        found['is_whole'] = len(found['commands']) == len(STEPS[step]) and all(
            each['code'] == 0 for each in found['commands']
        )
        path.with_suffix('.tmp').write_text(json.dumps(found, indent=1))
        path.with_suffix('.tmp').replace(path)
        print(found['commands'][-1]['output'][-2000:], flush=True)
    return found['is_whole']


def print_step(path: Path) -> None:
    """The tables of a step with their commands, as Markdown."""
    found = json.loads(path.read_text())
    print(f'## {found["step"]}, {found["date"]}\n')
    for each in found['commands']:
        print(f'{each["command"]}: ended with {each["code"]} after {each["seconds"]} s\n')
        for head, *rows in each['tables']:
            for cells in (head, ['---'] * len(head), *rows):
                print('|', ' | '.join(cells), '|')
            print()


def main() -> None:
    args = parse_args()
    if args.print:
        for step in args.steps:
            if (args.work_dir / f'{step}.json').exists():
                print_step(args.work_dir / f'{step}.json')
        return
    work_dir = args.work_dir.resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    site = work_dir / SITE
    if args.wheels:
        install(args.wheels, site)
    paths = [str(ROOT), str(site), os.environ.get('PYTHONPATH', '')]
    environment = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join(filter(None, paths)),
        'CUDA_VISIBLE_DEVICES': os.environ.get('CUDA_VISIBLE_DEVICES', '0'),
    }
    failed = [step for step in args.steps if not do_step(step, work_dir, environment)]
    if failed:
        sys.exit(f'not whole: {", ".join(failed)}. The same command does them again.')


if __name__ == '__main__':
    main()
