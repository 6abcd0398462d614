import json
import os
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')  # the checks run alike with and without a GPU

import cv2
import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from narrow_detector import CONFIG, narrow_options
from torch.nn.modules.batchnorm import _BatchNorm
from torch.profiler import profile

ROOT = Path(__file__).parents[1]
ARCHS = ['5', '6', '7', '8', '9', '10', '11', '12', '13', '13-x1.5', '13-x1.5-ada']


def randomize(model, seed=0):
    """Random weights, and batch-norm statistics that make every folding step matter."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.1, generator=generator)
        elif isinstance(module, _BatchNorm):
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
                module.bias.data.normal_(0, 0.3, generator=generator)
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return model


def relative_error(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


def call_and_count(function, folder):
    """What a function returns, and the bytes that it takes and does not give back.

    Of each allocation in the trace: the profiler's own sums now and then lose one.
    """
    with profile(profile_memory=True) as profiler:
        result = function()
    profiler.export_chrome_trace(str(folder / 'trace.json'))
    events = json.loads((folder / 'trace.json').read_text())['traceEvents']
    return result, sum(event['args']['Bytes'] for event in events if event['name'] == '[memory]')


def run_python(*args, cwd=ROOT, timeout=300, check=True, **env):
    """Runs a Python command in a new process; returns its output, stdout and stderr together."""
    result = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    if check:
        assert result.returncode == 0, result.stdout[-4000:]
    return result.stdout if check else result


def forget_runs():
    """Removes what runs leave in the process, and others of the same second would take for theirs:
    default scopes, metrics, and where loggers and visualizers write.
    """
    for manager in (DefaultScope, MessageHub, MMLogger, Visualizer, *Visualizer.__subclasses__()):
        manager._instance_dict.clear()


def run_in_process(monkeypatch, tool, *args):
    """Runs a tool as a program, in this process: starting another takes seconds."""
    forget_runs()
    monkeypatch.setattr(sys, 'argv', [tool, *map(str, args)])
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(Path(tool).parent.resolve())
    runpy.run_path(tool, run_name='__main__')


@pytest.fixture(autouse=True)
def no_earlier_run():
    forget_runs()


@pytest.fixture(autouse=True)
def same_random_numbers():
    """What a test draws does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture
def run_tool(monkeypatch):
    return partial(run_in_process, monkeypatch)


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """A small data set from the generator, laid out as data/coco is."""
    folder = tmp_path_factory.mktemp('data') / 'digits'
    run_python(
        'tools/dataset_converters/digits_to_coco.py', folder, '--num-train=16', '--num-val=4'
    )
    return folder


@pytest.fixture(scope='session')
def trained(digits, tmp_path_factory):
    """A whole run of the main config: three epochs of four iterations, λ = 0, 0.5, 1."""
    work_dir = tmp_path_factory.mktemp('run') / 'whole'
    # --resume where there is nothing yet, as in a job that is restarted whenever it dies.
    command = ['tools/train.py', CONFIG, '--work-dir', work_dir, '--resume']
    output = run_python(*command, *narrow_options(digits))
    assert f'No checkpoint to resume from in {work_dir}: starting' in output
    return work_dir


@pytest.fixture(scope='session')
def imagenet(tmp_path_factory):
    """A tiny folder in ImageNet's layout, with real.json: the second image has no ReaL labels."""
    folder = tmp_path_factory.mktemp('data') / 'imagenet'
    rng = np.random.default_rng(0)
    number = 0
    for split, count in (('train', 4), ('val', 2)):
        for wnid in ('n01440764', 'n01443537'):
            (folder / split / wnid).mkdir(parents=True)
            for _ in range(count):
                number += split == 'val'
                name = f'ILSVRC2012_val_{number:08d}' if split == 'val' else f'{wnid}_{_}'
                image = rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)
                image = cv2.resize(image, (320, 240), interpolation=cv2.INTER_CUBIC)
                cv2.imwrite(str(folder / split / wnid / f'{name}.JPEG'), image)
    (folder / 'real.json').write_text(json.dumps([[0], [], [1, 7], [7]]))
    return folder
