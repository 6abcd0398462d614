"""Functions that run programs and read what they print."""

import os
import runpy
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

ROOT = Path(__file__).parents[2]
IGNORED = shutil.ignore_patterns('.venv*', '.git', '*.egg-info', '.mim', '__pycache__')
OUTPUTS = {'build', 'checkpoints', 'data', 'dist', 'work_dirs'}


def run_python(*args, cwd=ROOT, timeout=300, check=True, **env):
    """Runs a Python command in a new process.

    Returns its output, stdout and stderr together; with ``check=False``, the finished process.
    """
    result = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    if check:
        assert result.returncode == 0, result.stdout[-4000:]
    return result.stdout if check else result


def forget_runs():
    """Removes what a run leaves in the process: default scopes, metrics, loggers and visualizers.

    A run that starts in the same second would take them for its own.
    """
    for manager in (DefaultScope, MessageHub, MMLogger, Visualizer, *Visualizer.__subclasses__()):
        manager._instance_dict.clear()


def run_in_process(monkeypatch, tool, *args):
    """Runs a tool as a program, but in this process, because starting another takes seconds."""
    forget_runs()
    monkeypatch.setattr(sys, 'argv', [tool, *map(str, args)])
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(Path(tool).parent.resolve())
    runpy.run_path(tool, run_name='__main__')


def fail(tool, *args, monkeypatch):
    """Runs a tool that must stop with an error of one sentence; returns that sentence."""
    with pytest.raises(SystemExit) as error:
        run_in_process(monkeypatch, f'tools/{tool}.py', *args)
    message = error.value.code
    assert isinstance(message, str) and message.startswith('error: ') and '\n' not in message
    return message


def parse(output):
    lines = [line for line in output.splitlines() if line.startswith('| ')]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[2:]]


def build_wheel(folder):
    """Builds the wheel of this repository; returns its path."""
    return build_distribution(folder, 'bdist_wheel')


def build_distribution(folder, command, prepare=lambda source: None):
    """Builds a distribution of a copy of this repository; returns its path.

    Args:
        folder: An empty folder.
        command: setup.py's command.
        prepare: Called with the folder of the copy before.
    """
    shutil.copytree(
        ROOT,
        folder / 'source',
        ignore=lambda path, names: IGNORED(path, names) | (OUTPUTS if path == str(ROOT) else set()),
    )
    prepare(folder / 'source')
    run_python('setup.py', '-q', command, '-d', folder / 'dist', cwd=folder / 'source')
    (distribution,) = (folder / 'dist').iterdir()
    return distribution


@contextmanager
def reserved_by_another(folder):
    """Another process uses a folder, as a run does."""
    code = (
        'import sys, time; from mmvanilla.checkpoint import reserve_folder; '
        'reserve_folder(sys.argv[1]); print("reserved", flush=True); time.sleep(99)'
    )
    other = subprocess.Popen(
        [sys.executable, '-c', code, str(folder)], stdout=subprocess.PIPE, cwd=ROOT
    )
    try:
        assert other.stdout.readline() == b'reserved\n'
        yield
    finally:
        other.kill()
        other.wait()
