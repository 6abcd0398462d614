"""Measures on an NVIDIA GPU all that the docs say of GPUs, in steps of at most ten minutes.

A bare machine is enough: Python with torch, the packages of requirements/gpu as wheels in a folder
(tools/gpu_wheels.sh makes it), and no network. Each step writes STEP.json to the work dir, with the
tables that its commands print; --print shows them. Finished steps are not repeated.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

ROOT = Path(__file__).parents[2]
SITE = 'site'  # in the work dir: the installed wheels
LIMIT = 590  # seconds of a step
TOOLS, PAPER = 'tools/analysis_tools', 'tools/paper'
OURS = [f'vanillanet-{arch}_in1k' for arch in ('5', '9', '13')]
TRAINING = ['--task', 'training', '--batch-size', '32', '--rounds', '10']


class Command(NamedTuple):
    """A Python program of the repository and its arguments."""

    program: str
    arguments: List[str]


def table4(precision: str, layout: str, forms: List[str]) -> Command:
    options = ['--device', 'cuda', '--rounds', '50', '--precision', precision, '--layout', layout]
    out = f'work_dirs/gpu/table4_{precision}_{layout}'
    return Command(
        f'{PAPER}/table4.py',
        [*options, '--forms', *forms, '--csv', f'{out}.csv', '--figure3', f'{out}.png'],
    )


def training(precision: str, models: List[str], forms: List[str]) -> Command:
    options = ['--device', 'cuda', *TRAINING, '--precision', precision, '--forms', *forms]
    return Command(f'{TOOLS}/benchmark.py', [*models, *options])


# In the order of their importance, should time be short.
STEPS: Dict[str, List[Command]] = {
    'tests': [Command('-m', ['pytest', '-m', 'gpu', 'tests/gpu'])],
    'table4': [
        table4(precision, layout, ['deploy', 'graph'])
        for precision in ('float32', 'tf32', 'bfloat16')
        for layout in ('contiguous', 'channels_last')
    ],
    'training': [
        training('float32', OURS, ['plain', 'deep', 'merged']),
        training('float16', OURS, ['plain', 'deep', 'merged']),
        training('bfloat16', OURS, ['plain', 'deep', 'merged']),
        training(
            'bfloat16',
            OURS[-1:],
            ['plain', 'deep-cp', 'merged', 'merged-cp', 'merged-compiled'],
        ),
    ],
    'table5': [
        Command(f'{PAPER}/table5.py', ['--device', 'cuda', '--rounds', '50', *options])
        for options in ([], ['--precision', 'tf32'], ['--precision', 'float16'])
    ],
    'activation': [
        Command(
            f'{TOOLS}/series_activation.py',
            ['--device', 'cuda', '--rounds', '30', '--dtypes', 'float32', 'float16', 'bfloat16'],
        )
    ],
    'inference': [
        Command(
            f'{TOOLS}/benchmark.py',
            [
                *(*OURS, '--device', 'cuda', '--rounds', '50', '--precision', precision),
                *('--forms', 'plain-deploy', 'plain-graph', 'deploy', 'graph', 'optimized'),
            ],
        )
        for precision in ('tf32', 'bfloat16')
    ],
    'costs': [
        Command(
            f'{TOOLS}/training_cost.py',
            [
                *map(str, sorted(ROOT.glob('configs/ablations/*_in1k.py'))),
                'configs/imagenet/vanillanet-6_8xb128_in1k.py',
                *('--device', 'cuda', '--batch-size', '64'),
            ],
        ),
        Command(
            f'{TOOLS}/training_cost.py',
            [
                'configs/retinanet_vanillanet13.py',
                'configs/mask_rcnn_vanillanet13.py',
                *('--device', 'cuda', '--batch-size', '2'),
            ],
        ),
    ],
    'amp': [
        Command('tools/dataset_converters/digits_to_coco.py', ['data/digits']),
        Command(
            'tools/train.py',
            [
                'configs/digits/retinanet_vanillanet-6_digits.py',
                *('--amp', '--work-dir', 'work_dirs/gpu/amp'),
            ],
        ),
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


def run(command: Command, seconds: float, environment: Dict[str, str]) -> Dict[str, Any]:
    """What a command printed, how it ended (None: at the limit), and how long it took."""
    start = time.perf_counter()
    try:
        ended = subprocess.run(
            [sys.executable, command.program, *command.arguments],
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
        command=' '.join(['python', command.program, *command.arguments]),
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
        print(f'{step}: {" ".join(command.arguments)}', flush=True)
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
    args.work_dir.mkdir(parents=True, exist_ok=True)
    site = (args.work_dir / SITE).resolve()
    if args.wheels:
        install(args.wheels, site)
    paths = [str(ROOT), str(site), os.environ.get('PYTHONPATH', '')]
    environment = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join(filter(None, paths)),
        'CUDA_VISIBLE_DEVICES': os.environ.get('CUDA_VISIBLE_DEVICES', '0'),
    }
    failed = [step for step in args.steps if not do_step(step, args.work_dir, environment)]
    if failed:
        sys.exit(f'not whole: {", ".join(failed)}. The same command does them again.')


if __name__ == '__main__':
    main()
