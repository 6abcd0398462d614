"""Failures on a fresh machine end with one sentence."""

import os
import shutil
import subprocess

import pytest
from helpers.programs import ROOT


@pytest.fixture
def checkout(tmp_path):
    """The files that the set-up reads, in a folder of their own."""
    for name in ('tools/setup_env.sh', 'setup.py'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / 'requirements', tmp_path / 'requirements')
    return tmp_path


def run_set_up(checkout, **env):
    return subprocess.run(
        ['bash', 'tools/setup_env.sh'],
        cwd=checkout,
        env={**os.environ, 'XDG_CACHE_HOME': str(checkout / 'cache'), **env},
        capture_output=True,
        text=True,
    )


def set_up(checkout, **env):
    """Runs a set-up that must fail; returns the one sentence of its error."""
    result = run_set_up(checkout, **env)
    assert result.returncode == 1
    (message,) = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
    return message


def write_program(folder, name, script):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f'#!/bin/sh\n{script}\n')
    (folder / name).chmod(0o755)
    return f'{folder}:{os.environ["PATH"]}'


def test_python_too_old(checkout):
    write_program(checkout / 'bin', 'python3.9', 'exit 1')
    message = set_up(checkout, PYTHON=str(checkout / 'bin/python3.9'))
    assert 'no Python 3.12 or 3.11' in message


def test_full_disk(checkout):
    path = write_program(checkout / 'bin', 'df', 'echo header; echo "/dev/x 100 99 1048576 99% /"')
    assert 'has 1 GB free' in set_up(checkout, PATH=path)
    assert not (checkout / '.venv').exists()


def fake_venv(checkout, pip, has_gpu=False):
    """Makes an environment whose pip runs the script ``pip``, so that no test downloads."""
    script = f"""
case "$*" in
    "-m pip --version") exit 0;;
    *"-m pip"*) {pip};;
    *cuda.is_available*) exit {0 if has_gpu else 1};;
    *torch.version.cuda*) echo 12;;
    *get_platform*) echo torch0-cp311-linux;;
esac"""
    (checkout / '.venv').mkdir()
    write_program(checkout / '.venv/bin', 'python', script)


def test_missing_compiler(checkout):
    fake_venv(checkout, 'exit 0')
    tools = checkout / 'tools_without_compiler'
    tools.mkdir()
    for name in (
        'bash',
        'sh',
        'cat',
        'df',
        'awk',
        'sed',
        'sha256sum',
        'dirname',
        'mkdir',
        'grep',
        'rm',
    ):
        (tools / name).symlink_to(shutil.which(name))
    message = set_up(checkout, PATH=str(tools), CXX='', PYTHON='none')
    assert 'no C++ compiler found' in message and 'apt-get install g++' in message


def test_gpu_without_cuda_compiler(checkout):
    """This is no error: the set-up says so, builds the ops for the CPU and continues."""
    fake_venv(checkout, 'exit 0', has_gpu=True)
    path = write_program(checkout / 'bin', 'nvcc', 'exit 127')
    result = run_set_up(checkout, PATH=path)
    assert 'no CUDA 12 compiler (nvcc)' in result.stdout
    assert 'building mmcv' in result.stdout


@pytest.mark.parametrize(
    ('output', 'expected'),
    [('No space left on device', 'the disk is full'), ('timed out', 'installing torch')],
)
def test_failed_installation(checkout, output, expected):
    fake_venv(checkout, f'echo "{output}"; exit 1')
    assert expected in set_up(checkout)
    assert not (checkout / '.venv/ready').exists()
