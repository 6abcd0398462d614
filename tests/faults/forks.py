"""Runs of tools in forks of this process, which has imported everything: a start takes no time."""

import json
import os
import runpy
import signal
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, NamedTuple, Tuple

from helpers.programs import ROOT, forget_runs


class Outcome(NamedTuple):
    """How a process ended: its exit code (negative after a signal) and what it printed."""

    code: int
    output: str

    @property
    def sentence(self) -> str:
        """The error that a tool ended with, or nothing."""
        lines = self.output.strip().splitlines() or ['']
        return lines[-1] if self.code == 1 and lines[-1].startswith('error: ') else ''


def run(function: Callable[[], Any], timeout: float = 120) -> Outcome:
    """Calls a function in a fork, and waits for it; it is killed after ``timeout`` seconds."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.dup2(write, 1)
        os.dup2(write, 2)
        os.close(write)
        _call_and_exit(function)
    os.close(write)
    return _collect(child, read, timeout)


def _call_and_exit(function: Callable[[], Any]) -> None:
    code = 0
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        function()
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _collect(child: int, read: int, timeout: float) -> Outcome:
    os.set_blocking(read, False)
    parts, end = [], time.monotonic() + timeout
    while True:
        try:
            part = os.read(read, 1 << 16)
        except BlockingIOError:
            part = None
            time.sleep(0.005)
        if part:
            parts.append(part)
        elif part == b'':
            break
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            parts.append(b'\nit hung')
            break
    os.close(read)
    status = os.waitpid(child, 0)[1]
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return Outcome(code, b''.join(parts).decode(errors='replace'))


def run_tool(tool: str, *args: Any, before: Callable[[], Any] = lambda: None) -> Outcome:
    """Runs a tool of ``tools/`` in a fork, after calling ``before`` there."""

    def start() -> None:
        before()
        forget_runs()
        path = ROOT / 'tools' / f'{tool}.py'
        os.chdir(ROOT)
        sys.argv = [str(path), *map(str, args)]
        sys.path.insert(0, str(path.parent))
        runpy.run_path(str(path), run_name='__main__')

    return run(start)


def run_cases(
    cases: Dict[str, Callable[[Path], Any]], folder: Path, at_once: int = 2
) -> Iterator[Tuple[str, Any]]:
    """Calls functions in forks, two at a time; yields what each returns, by its name.

    Each gets an empty folder of its own. What it returns must fit into JSON.
    """
    waiting, running = list(cases.items()), {}
    while waiting or running:
        while waiting and len(running) < at_once:
            name, function = waiting.pop(0)
            place = folder / f'{len(cases) - len(waiting)}'
            place.mkdir(parents=True)
            child = os.fork()
            if child == 0:
                _call_and_exit(partial(_keep, function, place))
            running[child] = name, place
        child = os.wait()[0]
        if child in running:
            name, place = running.pop(child)
            result = place.with_suffix('.json')
            yield name, json.loads(result.read_text()) if result.exists() else 'the case failed'


def _keep(function: Callable[[Path], Any], place: Path) -> None:
    result = function(place)
    place.with_suffix('.json').write_text(json.dumps(result))
