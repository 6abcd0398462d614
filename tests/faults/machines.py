"""What machines and people do to a run: full disks, permissions, Ctrl-C, a second run."""

import os
import random
import resource
import shutil
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict

from faults.forks import Outcome, run_cases, run_tool
from faults.kills import names, on_file_operations, same_files, train


def full_disk(place: Path, config: Path, reference: Path, limit: int) -> Dict[str, Any]:
    """Files can only have ``limit`` bytes until the run is resumed."""

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    outcome = train(place / 'run', config, before=fill)
    return _and_go_on(outcome, 'cannot be written', place, config, reference)


def no_memory(place: Path, config: Path, reference: Path, after: int) -> Dict[str, Any]:
    """Memory ends at a file operation."""

    def starve(work_dir: Path) -> None:
        def act(count: int, event: str, path: str) -> None:
            if count == after:
                raise MemoryError('Unable to allocate 9 GiB')

        on_file_operations(work_dir, act)

    outcome = train(place / 'run', config, before=partial(starve, place / 'run'))
    return _and_go_on(outcome, 'not enough memory', place, config, reference)


def interrupted(place: Path, config: Path, reference: Path, seconds: float) -> Dict[str, Any]:
    """Ctrl-C after some seconds."""

    def press() -> None:
        pid = os.getpid()
        threading.Timer(seconds, lambda: os.kill(pid, signal.SIGINT)).start()

    outcome = train(place / 'run', config, before=press)
    if outcome.code == 130:
        outcome = Outcome(1, outcome.output)
    return _and_go_on(outcome, 'interrupted; --resume goes on', place, config, reference)


def second_run(place: Path, config: Path, reference: Path) -> Dict[str, Any]:
    """Another run begins in the folder of one that goes on, which is killed afterwards."""
    first = os.fork()
    if first == 0:
        train(place / 'run', config, before=lambda: None)
        os._exit(0)
    while not list(place.glob('run/*/*.log')):
        time.sleep(0.01)
    second = train(place / 'run', config)
    os.waitpid(first, 0)
    return _and_go_on(second, 'another run is using', place, config, reference)


def _and_go_on(
    outcome: Outcome, words: str, place: Path, config: Path, reference: Path
) -> Dict[str, Any]:
    """How a run ended, and what was lost when the next run has resumed it."""
    ended = outcome.output.strip().splitlines()[-1:] or ['']
    result = dict(
        output=outcome.output[-1500:],
        tracebacks='Traceback' in outcome.output,
        unclear=outcome.code != 1 or words not in ended[0],
    )
    before = names(place / 'run') if (place / 'run').exists() else []
    again = train(place / 'run', config)
    lost = [again.output[-1000:]] if again.code else same_files(place / 'run', reference)
    result['lost'] = [*lost[:4], f'there were {before}'] if lost else []
    shutil.rmtree(place)
    return result


def not_writable(place: Path, config: Path, checkpoint: Path, tool: str) -> Dict[str, Any]:
    """The output is below a file."""
    (place / 'file').write_text('')
    out = place / 'file/run'
    outcome = {
        'train': lambda: run_tool('train', config, '--work-dir', out),
        'test': lambda: run_tool('test', config, checkpoint, '--work-dir', out),
        'test --out': lambda: run_tool(
            *('test', config, checkpoint, '--work-dir', place / 'test', '--out', out / 'a.pkl')
        ),
        'deploy': lambda: run_tool('deploy', config, checkpoint, out),
    }[tool]()
    return dict(
        output=outcome.output[-1500:],
        tracebacks='Traceback' in outcome.output or 'Epoch(test)' in outcome.output,
        unclear='cannot be written' not in outcome.sentence,
        lost=[],
    )


def run_all(config: Path, checkpoint: Path, folder: Path, rng: random.Random) -> Dict[str, int]:
    """All of these; returns counts."""
    reference = checkpoint.parent
    size = checkpoint.stat().st_size
    given = dict(config=config, reference=reference)
    cases: Dict[str, Callable[[Path], Any]] = {'a second run': partial(second_run, **given)}
    for limit in (0, 100, 3000, size // 2, size - 100):
        cases[f'a disk with {limit} bytes'] = partial(full_disk, **given, limit=limit)
    for after in rng.sample(range(12, 78), 6):
        cases[f'no memory at operation {after}'] = partial(no_memory, **given, after=after)
    for _ in range(6):
        seconds = rng.uniform(0.2, 2.5)
        cases[f'Ctrl-C after {seconds:.2f} s'] = partial(interrupted, **given, seconds=seconds)
    for tool in ('train', 'test', 'test --out', 'deploy'):
        cases[f'{tool} below a file'] = partial(
            not_writable, config=config, checkpoint=checkpoint, tool=tool
        )
    counts = dict(cases=0, tracebacks=0, unclear=0, lost=0)
    for name, found in run_cases(cases, folder):
        counts['cases'] += 1
        if isinstance(found, str):
            found = dict(output=found, tracebacks=True)
        bad = [kind for kind in ('tracebacks', 'unclear', 'lost') if found.get(kind)]
        for kind in bad:
            counts[kind] += 1
        if bad:
            print(f'{name}: {bad}: {found.get("lost")}: {found["output"]}', flush=True)
    return counts
