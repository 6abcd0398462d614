"""Measures on an NVIDIA GPU all that the docs say of GPUs, step by step.

A bare machine is enough: Python with torch and the usual scientific packages, the wheels that
tools/gpu_wheels.sh makes, and no network. Each step leaves STEP.json, with the tables that its
commands print, and STEP.log in the work dir; --print shows the tables. Finished steps are not
repeated, so a machine may be had for a few minutes at a time.
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
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, Dict, List, NamedTuple

ROOT = Path(__file__).parents[2]
SITE = Path(gettempdir(), 'mmvanilla_gpu_site')  # the installed wheels
OURS = 'vanillanet-5_in1k vanillanet-9_in1k vanillanet-13_in1k'
BENCHMARK = 'tools/analysis_tools/benchmark.py'
TABLE4 = 'tools/paper/table4.py --forms deploy graph --rounds 50 --csv {out}/{step}.csv'
TABLE5 = 'tools/paper/table5.py --rounds 30'
TRAINING = f'{BENCHMARK} {OURS} --task training --batch-size 32 --forms plain deep merged'
VARIANTS = (
    f'{BENCHMARK} vanillanet-13_in1k --task training --batch-size 32 '
    '--forms plain deep-cp merged merged-cp merged-compiled'
)
INFERENCE = (
    f'{BENCHMARK} {OURS} --rounds 50 --forms plain-deploy plain-graph deploy graph optimized'
)
COST = 'tools/analysis_tools/training_cost.py'
ABLATIONS = ' '.join(
    str(path.relative_to(ROOT)) for path in sorted(ROOT.glob('configs/ablations/*_in1k.py'))
)
DETECTORS = 'configs/retinanet_vanillanet13.py configs/mask_rcnn_vanillanet13.py'
NEW_DIGITS = ' '.join(
    [
        *(
            f'{name}_dataloader.dataset.data_root={{new}}/digits/'
            for name in ('train', 'val', 'test')
        ),
        *(
            f'{name}_evaluator.ann_file={{new}}/digits/annotations/instances_val2017.json'
            for name in ('val', 'test')
        ),
    ]
)
# Commands by step, without python; {out} is the work dir, {new} a new folder. In the order of
# their importance.
STEPS: Dict[str, List[str]] = {
    'tests': ['-m pytest -m gpu tests/gpu'],
    'table4-float32': [f'{TABLE4} --figure3 {{out}}/figure3.png'],
    'training-float32': [TRAINING],
    'training-bfloat16': [f'{TRAINING} --precision bfloat16'],
    'table5-float32': [TABLE5],
    'activation': [
        'tools/analysis_tools/series_activation.py --batch-size 256 '
        '--dtypes float32 float16 bfloat16'
    ],
    'table4-tf32': [f'{TABLE4} --precision tf32'],
    'table4-bfloat16': [f'{TABLE4} --precision bfloat16'],
    'training-float16': [f'{TRAINING} --precision float16'],
    'training-tf32': [f'{TRAINING} --precision tf32'],
    'training-variants': [f'{VARIANTS} --precision bfloat16'],
    'table5-tf32': [f'{TABLE5} --precision tf32'],
    'table5-float16': [f'{TABLE5} --precision float16'],
    # As many boxes as there can be, instead of next to none
    'table5-boxes': [
        f'{TABLE5} --cfg-options model.test_cfg.score_thr=0.0 model.test_cfg.rcnn.score_thr=0.0'
    ],
    'amp': [
        'tools/dataset_converters/digits_to_coco.py {new}/digits',
        'tools/train.py configs/digits/retinanet_vanillanet-6_digits.py --amp '
        f'--work-dir {{new}}/amp --cfg-options {NEW_DIGITS}',
    ],
    **{
        f'table4-{precision}-channels-last': [
            f'{TABLE4} --precision {precision} --layout channels_last'
        ]
        for precision in ('float32', 'tf32', 'bfloat16')
    },
    **{
        f'inference-{precision}': [f'{INFERENCE} --precision {precision}']
        for precision in ('tf32', 'bfloat16')
    },
    'costs-imagenet': [
        f'{COST} {ABLATIONS} configs/imagenet/vanillanet-6_8xb128_in1k.py --batch-size 64'
    ],
    'costs-coco': [f'{COST} {DETECTORS} --batch-size 2'],
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('steps', nargs='*', metavar='STEP', help=f'of {", ".join(STEPS)}')
    parser.add_argument('--wheels', type=Path, help='folder of wheels to install first')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/gpu'))
    parser.add_argument(
        '--seconds', type=float, default=570, help='after which it stops, wherever it is'
    )
    parser.add_argument('--print', action='store_true', help="print the steps' tables instead")
    args = parser.parse_args()
    unknown = [step for step in args.steps if step not in STEPS]
    if unknown:
        parser.error(f'no step is called {unknown[0]}: choose of {", ".join(STEPS)}')
    args.steps = args.steps or list(STEPS)
    return args


def install(wheels: Path) -> None:
    """Installs wheels beside what the machine has, and nothing else."""
    files = sorted(map(str, wheels.glob('*.whl')))
    if not files:
        sys.exit(f'{wheels} has no wheels: make them with tools/gpu_wheels.sh.')
    options = ['-q', '--no-index', '--no-deps', '--no-compile', '--no-cache-dir', '--upgrade']
    command = [sys.executable, '-m', 'pip', 'install', *options, '--target', str(SITE), *files]
    subprocess.run(command, check=True)


def make_environment() -> Dict[str, str]:
    """The environment of the commands; exits if torch has no GPU there."""
    paths = [str(ROOT), str(SITE), os.environ.get('PYTHONPATH', '')]
    environment = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join(filter(None, paths)),
        'PYTHONUNBUFFERED': '1',
        'CUDA_VISIBLE_DEVICES': os.environ.get('CUDA_VISIBLE_DEVICES', '0'),
    }
    code = 'import torch; print(torch.cuda.get_device_name())'
    if subprocess.run([sys.executable, '-c', code], env=environment).returncode != 0:
        sys.exit('torch has no GPU here.')
    return environment


class Table(NamedTuple):
    """A Markdown table that a program printed.

    Attributes:
        title: The line before it.
        rows: Its cells by row, first those of its head.
    """

    title: str
    rows: List[List[str]]


def read_tables(text: str) -> List[Table]:
    """The Markdown tables in a text."""
    tables: List[Table] = []
    title = before = ''
    for line in text.splitlines():
        if line.startswith('|'):
            if not before.startswith('|'):
                tables.append(Table(title, []))
            cells = [cell.strip() for cell in line.strip('|').split('|')]
            if set(''.join(cells)) != {'-'}:
                tables[-1].rows.append(cells)
        elif line:
            title = line
        before = line
    return tables


def run(command: str, seconds: float, log: Path, environment: Dict[str, str]) -> Dict[str, Any]:
    """What a command printed, how it ended (None: at the limit), and how long it took."""
    start = time.perf_counter()
    with open(log, 'w') as file:
        try:
            code = subprocess.run(
                [sys.executable, *shlex.split(command)],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment,
                timeout=max(seconds, 0),
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    text = log.read_text(errors='replace')
    return dict(
        command=f'python {command}',
        code=code,
        seconds=round(time.perf_counter() - start, 1),
        tables=read_tables(text),
        output=text[-20_000:],
    )


def is_done(path: Path) -> bool:
    """Whether a file is that of a finished step."""
    return path.exists() and json.loads(path.read_text())['is_whole']


def do_step(step: str, work_dir: Path, end: float, environment: Dict[str, str]) -> bool:
    """Does a step; returns whether all its commands ended well before the end."""
    path = work_dir / f'{step}.json'
    found = dict(step=step, date=date.today().isoformat(), is_whole=False, commands=[])
    with TemporaryDirectory() as new:
        places = dict(out=shlex.quote(str(work_dir)), new=new, step=step)
        for command in STEPS[step]:
            command = command.format(**places)
            print(f'{step}: {command}', flush=True)
            seconds = end - time.perf_counter()
            found['commands'].append(run(command, seconds, path.with_suffix('.log'), environment))
            print(found['commands'][-1]['output'][-2000:], flush=True)
            if found['commands'][-1]['code'] != 0:
                break
        else:
            found['is_whole'] = True
    path.with_suffix('.tmp').write_text(json.dumps(found, indent=1))
    path.with_suffix('.tmp').replace(path)
    return found['is_whole']


def print_step(path: Path) -> None:
    """The tables of a step with their commands, as Markdown."""
    found = json.loads(path.read_text())
    print(f'## {found["step"]}, {found["date"]}\n')
    for each in found['commands']:
        print(f'{each["command"]}: ended with {each["code"]} after {each["seconds"]} s\n')
        for title, (head, *rows) in each['tables']:
            print(f'{title}\n')
            for cells in (head, ['---'] * len(head), *rows):
                print('|', ' | '.join(cells), '|')
            print()


def main() -> None:
    args = parse_args()
    end = time.perf_counter() + args.seconds
    work_dir = args.work_dir.resolve()
    paths = {step: work_dir / f'{step}.json' for step in args.steps}
    if args.print:
        for path in paths.values():
            if path.exists():
                print_step(path)
        return
    work_dir.mkdir(parents=True, exist_ok=True)
    if args.wheels:
        install(args.wheels)
    environment = make_environment()
    for step, path in paths.items():
        if is_done(path):
            print(f'{step}: done before, see {path}')
        elif time.perf_counter() < end:
            do_step(step, work_dir, end, environment)
    left = [step for step, path in paths.items() if not is_done(path)]
    if left:
        sys.exit(f'not done: {", ".join(left)}. The same command goes on with them.')


if __name__ == '__main__':
    main()
