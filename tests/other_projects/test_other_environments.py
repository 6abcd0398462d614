"""Checkpoints go from one environment to another; make test-exchange runs this."""

import json
import subprocess
import sys

import pytest
from helpers.narrow_detector import CONFIG, narrow_options
from helpers.programs import ROOT

PYTHONS = {
    path.parent.name: ROOT / f'.venv-{path.parent.name}/bin/python'
    for path in sorted((ROOT / 'requirements').glob('*/python.txt'))
    if path.parent.name != 'openmmlab'
}
# Prints the state of a run, every number of it.
READ = """
import hashlib, json, sys
import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmvanilla.checkpoint import load_checkpoint

def plain(value):
    if isinstance(value, torch.Tensor):
        numbers = value.detach().contiguous().numpy().tobytes()
        return [str(value.dtype), list(value.shape), hashlib.sha256(numbers).hexdigest()]
    if isinstance(value, HistoryBuffer):
        return [array.tolist() for array in value.data]
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value if value is None else str(value)

print('state', json.dumps(plain(load_checkpoint(sys.argv[1])), sort_keys=True))
"""


def run(python, *args):
    result = subprocess.run(
        [str(python), '-W', 'ignore', *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    return result.stdout


def read(python, path):
    output = run(python, '-c', READ, path)
    return json.loads(output.rpartition('state ')[2])


@pytest.mark.slow
@pytest.mark.parametrize('direction', ['from it', 'to it'])
@pytest.mark.parametrize('name', PYTHONS)
def test_a_run_goes_on_in_another_environment(name, direction, digits, tmp_path):
    if not PYTHONS[name].exists():
        pytest.skip(f'make test-{name} makes the environment')
    pythons = (PYTHONS[name], sys.executable)
    first, second = pythons if direction == 'from it' else reversed(pythons)
    options = [*narrow_options(digits), 'default_hooks.checkpoint.max_keep_ckpts=5']
    command = ['tools/train.py', CONFIG, '--work-dir', tmp_path]
    run(first, *command, *options, 'train_cfg.max_epochs=2', 'train_cfg.val_interval=5')

    state = read(first, tmp_path / 'epoch_2.pth')
    assert read(second, tmp_path / 'epoch_2.pth') == state
    assert state['state_dict']['backbone.stem.conv.act._extra_state'][0] == 'torch.float64'
    assert len(state['message_hub']['log_scalars']['train/lambda'][0]) == 8
    assert len(state['message_hub']['log_scalars']['train/loss'][0]) == 8

    output = run(second, *command, *options, '--resume')
    assert 'resumed epoch: 2' in output and 'epoch_3_deploy.pth' in output
    after = read(second, tmp_path / 'epoch_3.pth')
    assert read(first, tmp_path / 'epoch_3.pth') == after
    for scalar in ('train/lambda', 'train/loss'):  # the logs go on where they were
        logs = [each['message_hub']['log_scalars'][scalar][0] for each in (state, after)]
        assert len(logs[1]) == 12 and logs[1][:8] == logs[0]

    fused = tmp_path / 'epoch_3_deploy.pth'
    assert read(first, fused) == read(second, fused)
    found = [
        run(python, 'tools/test.py', CONFIG, fused, '--work-dir', tmp_path / 'test', *options)
        for python in (first, second)
    ]
    maps = [output.rpartition('coco/bbox_mAP: ')[2].split()[0] for output in found]
    assert float(maps[0]) == pytest.approx(float(maps[1]), abs=1e-3)
