"""Kills of a training run at each of its file operations, and at random moments."""

import os
import random
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import torch
from helpers.programs import ROOT

from faults.forks import Outcome, run_cases, run_tool
from mmvanilla import UsageError
from mmvanilla.checkpoint import load_checkpoint
from mmvanilla.checkpoint.resuming import RUN_ID
from mmvanilla.engine.hooks.atomic_checkpoint_hook import EXPIRED, VALIDATED

# Without random augmentation, whose state no checkpoint holds.
CONFIG = """
_base_ = '{root}/configs/digits/vanillanet-6_digits.py'
model = dict(
    backbone=dict(widen_factor=1 / 64),
    head=dict(in_channels=64, dropout=0.0),
    train_cfg=dict(_delete_=True)
)
data = dict(batch_size=8, num_workers=0, persistent_workers=False)
pipeline = _base_.test_pipeline
train_dataloader = dict(data, dataset=dict(data_root='{data}', pipeline=pipeline))
val_dataloader = dict(data, dataset=dict(data_root='{data}'))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=4, val_interval=1)
optim_wrapper = dict(optimizer=dict(lr=3e-2))
custom_hooks = [
    dict(type='mmvanilla.DeepTrainingHook', decay_epochs=2, merge=True),
    dict(type='EMAHook', momentum=0.5, update_buffers=True),
]
randomness = dict(seed=1)  # with which the best checkpoint is the first, then the fourth
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=1, save_best='accuracy/top1')
)
"""
# In checkpoints: times, places and versions, which say nothing about the run's state.
IGNORED = ('time', 'seed', 'experiment_name', 'cfg', 'last_ckpt', 'best_ckpt', 'mmengine_version')
# Where the loops are, which the next iteration says anew; a validation before the first one of a
# resumed run counts from another place than one after the last.
STAGE = [
    f'.message_hub.runtime_info.{name}'
    for name in ('epoch', 'iter', 'loop_stage', EXPIRED, VALIDATED, RUN_ID)
]
WRITES = {'os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.truncate', 'os.link', 'os.symlink'}


def train(work_dir: Path, config: Path, **kwargs: Any) -> Outcome:
    return run_tool('train', config, '--work-dir', work_dir, '--resume', **kwargs)


def on_file_operations(work_dir: Path, act: Callable[[int, str, str], None]) -> None:
    """Calls ``act`` before each operation that changes files of a folder."""
    inside, count = f'{work_dir}{os.sep}', 0

    def hook(event: str, args: Tuple[Any, ...]) -> None:
        nonlocal count
        is_open = event == 'open' and len(args) > 2 and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (is_open or event in WRITES) and str(args[0]).startswith(inside):
            act(count, event, str(args[1] if event == 'os.rename' else args[0]))
            count += 1

    sys.addaudithook(hook)


def kill_at(number: int, work_dir: Path) -> None:
    def act(count: int, event: str, path: str) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    on_file_operations(work_dir, act)


def kill_after(seconds: float) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def list_operations(work_dir: Path, out: Path) -> None:
    def act(count: int, event: str, path: str) -> None:
        with open(out, 'a') as file:
            file.write(f'{event} {os.path.basename(path)}\n')

    on_file_operations(work_dir, act)


def names(work_dir: Path) -> List[str]:
    """The files of a run, but not the folders of its logs."""
    return sorted(path.name for path in work_dir.iterdir() if path.is_file())


def differences(got: Any, expected: Any, place: str = '') -> Iterator[str]:
    """The places at which two checkpoints differ; times, places and random names are left out."""
    if isinstance(expected, dict):
        for key in {**expected, **got}:
            if key not in IGNORED and f'{place}.{key}' not in STAGE:
                if key not in got or key not in expected:
                    yield f'{place}.{key}'
                else:
                    yield from differences(got[key], expected[key], f'{place}.{key}')
    elif isinstance(expected, (list, tuple)):
        if len(got) != len(expected):
            yield place
        for i, (one, other) in enumerate(zip(got, expected)):
            yield from differences(one, other, f'{place}.{i}')
    elif isinstance(expected, torch.Tensor):
        if not torch.equal(got, expected):
            yield place
    elif type(expected).__name__ != 'HistoryBuffer' and got != expected:
        yield place


def same_files(work_dir: Path, reference: Path) -> List[str]:
    """What differs between the files of two runs."""
    found = [f'file {name}' for name in {*names(work_dir)} ^ {*names(reference)}]
    for name in names(reference):
        if name.endswith('.pth') and (work_dir / name).exists():
            both = load_checkpoint(work_dir / name), load_checkpoint(reference / name)
            found += [f'{name}{place}' for place in differences(*both)]
    return found


def best_is_there(work_dir: Path) -> bool:
    for path in work_dir.glob('best_*.pth'):
        try:
            load_checkpoint(path)
        except UsageError:
            continue
        return True
    return False


def case(
    place: Path,
    config: Path,
    reference: Path,
    deaths: List[Callable[[Path], None]],
    best_written: bool,
) -> Dict[str, Any]:
    """Kills a run, and the runs that resume it; the last one is not killed."""
    work_dir = place / 'run'
    found = {'kills': 0, 'lost best': [], 'lost': [], 'leftovers': [], 'tracebacks': ''}
    for death in deaths:
        outcome = train(work_dir, config, before=partial(death, work_dir))
        found['kills'] += outcome.code in (-signal.SIGKILL, -signal.SIGALRM)
        found['tracebacks'] += outcome.output[-2000:] if 'Traceback' in outcome.output else ''
        if best_written and not best_is_there(work_dir):
            found['lost best'] = names(work_dir) or ['nothing']
    outcome = train(work_dir, config)
    if outcome.code:
        found['lost'] = [outcome.output[-1500:]]
        return found
    wrong = same_files(work_dir, reference)
    found['leftovers'] = [each for each in wrong if each.startswith('file ')]
    found['lost'] = [each for each in wrong if not each.startswith('file ')][:5]
    logs = ''.join(path.read_text() for path in work_dir.glob('*/*.log'))
    if 'Epoch(val) [4]' not in logs:
        found['lost'].append('the final metrics')
    if not found['lost'] and not found['leftovers']:
        shutil.rmtree(place)
    return found


def make_runs(data: Path, folder: Path) -> Tuple[Path, Dict[str, Path]]:
    """A config, and the last checkpoints of a run of it, by their form."""
    folder.mkdir()
    config, deep = folder / 'small.py', folder / 'deep.py'
    config.write_text(CONFIG.format(root=ROOT, data=data))
    deep.write_text(config.read_text().replace('merge=True', 'merge=False'))
    operations = partial(list_operations, folder / 'reference', folder / 'operations.txt')
    for outcome in (
        train(folder / 'reference', config, before=operations),
        train(folder / 'deep', deep),
    ):
        assert outcome.code == 0, outcome.output[-3000:]
    return config, {
        'deep': folder / 'deep/epoch_4.pth',
        'merged': folder / 'reference/epoch_4.pth',
        'deploy': folder / 'reference/epoch_4_deploy.pth',
    }


def run_all(config: Path, folder: Path, rng: random.Random) -> Dict[str, int]:
    """All kills; returns counts by what was lost."""
    reference, operations = config.parent / 'reference', config.parent / 'operations.txt'
    lines = operations.read_text().splitlines()
    first_best = next(i for i, line in enumerate(lines) if line.startswith('os.rename best_'))
    cases = {
        f'before operation {i} ({line})': partial(
            case,
            config=config,
            reference=reference,
            deaths=[partial(kill_at, i)],
            best_written=i > first_best,
        )
        for i, line in enumerate(lines)
    }
    for _ in range(20):
        moments = [rng.uniform(0.3, 4) for _ in range(rng.choice([1, 2, 3]))]
        deaths = [lambda work_dir, seconds=seconds: kill_after(seconds) for seconds in moments]
        cases[f'after {", ".join(f"{each:.2f} s" for each in moments)}'] = partial(
            case,
            config=config,
            reference=reference,
            deaths=deaths,
            best_written=False,
        )
    counts = {'runs': 0, 'kills': 0, 'lost': 0, 'lost best': 0, 'leftovers': 0, 'tracebacks': 0}
    for name, found in run_cases(cases, folder):
        counts['runs'] += 1
        if isinstance(found, str):
            found = dict(lost=found)
        for kind, what in found.items():
            counts[kind] += what if kind == 'kills' else bool(what)
            if what and kind != 'kills':
                print(f'kill {name}: {kind}: {what}', flush=True)
    return counts
