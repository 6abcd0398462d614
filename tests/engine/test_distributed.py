"""Two gloo processes compared with one: λ, merging, losses, and resuming with one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.narrow_detector import CONFIG as NARROW
from helpers.narrow_detector import narrow_options
from helpers.programs import ROOT, fail, run_in_process

from mmvanilla.checkpoint import load_checkpoint
from mmvanilla.cli.options import load_config, make_parser

CONFIG = """
_base_ = '{root}/configs/digits/upernet_vanillanet-6_digits.py'
custom_imports = dict(imports=['recording'])
# A mean over pixels, not one weighted by how many there are of a class in half a batch.
head = dict(dropout_ratio=0, loss_decode=dict(class_weight=None))
model = dict(decode_head=head, auxiliary_head=head)
train_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(data_root='{digits}'))
train_cfg = dict(max_iters=4, val_interval=100)
val_dataloader = dict(dataset=dict(data_root='{digits}'))
# Plain gradient descent: Adam would make steps of the rounding errors of small gradients.
optim_wrapper = dict(optimizer=dict(_delete_=True, type='SGD', lr=0.2))
param_scheduler = []
default_hooks = dict(checkpoint=dict(interval=2))
custom_hooks = [
    dict(type='mmvanilla.DeepTrainingHook', by_epoch=False, decay_iters=2, merge=True),
    dict(type='Record')]
"""
RECORDING = """
import json
from pathlib import Path
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch.nn.modules.batchnorm import _BatchNorm
from mmvanilla.models.folding.network import deep_convs

@HOOKS.register_module()
class Record(Hook):
    # Keeps all norms frozen; they would see half a batch each.
    def before_train(self, runner):
        self.found = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for module in runner.model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        self.lambdas = [conv.lambda_ for conv in deep_convs(runner.model)]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        weights = [p.detach().double().sum().item() for p in runner.model.parameters()]
        self.found.append(dict(
            loss=outputs['loss'].item(), lambdas=sorted(set(self.lambdas)), weights=weights))

    def after_train(self, runner):
        path = Path(runner.work_dir, f'rank{runner.rank}of{runner.world_size}.json')
        path.write_text(json.dumps(self.found))
"""


def read(work_dir: Path, world_size: int):
    return [
        json.loads((work_dir / f'rank{rank}of{world_size}.json').read_text())
        for rank in range(world_size)
    ]


def find_free_port() -> int:
    with socket.socket() as any_socket:
        any_socket.bind(('127.0.0.1', 0))
        return any_socket.getsockname()[1]


@pytest.fixture(scope='module')
def project(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp('project')
    (folder / 'config.py').write_text(CONFIG.format(root=ROOT, digits=digits))
    (folder / 'recording.py').write_text(RECORDING)
    return folder


def test_two_processes_train_as_one(project, monkeypatch):
    monkeypatch.syspath_prepend(str(project))
    config = project / 'config.py'
    run_in_process(monkeypatch, 'tools/train.py', config, '--work-dir', project / 'one')
    result = subprocess.run(
        ['bash', 'tools/dist_train.sh', config, '2', '--work-dir', project / 'two']
        + ['--cfg-options', 'train_dataloader.batch_size=2'],
        cwd=ROOT,
        env={
            **os.environ,
            'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
            'PYTHONPATH': str(project),
            'OMP_NUM_THREADS': '1',
            'PORT': str(find_free_port()),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-4000:]

    (one,) = read(project / 'one', 1)
    two = read(project / 'two', 2)
    for mine in (one, *two):
        assert [step['lambdas'] for step in mine] == [[0], [0.5], [1], [1]]
    assert [step['weights'] for step in two[0]] == [step['weights'] for step in two[1]]
    assert two[0][0]['loss'] != two[1][0]['loss']  # each has its own images
    # At λ = 1 each pair becomes one convolution, so there are fewer parameters.
    for mine in (one, two[0]):
        assert len({len(step['weights']) for step in mine[:2]}) == 1
        assert len(mine[2]['weights']) < len(mine[1]['weights'])
    losses = [step['loss'] for step in one]
    means = [(a['loss'] + b['loss']) / 2 for a, b in zip(*two)]
    assert means == pytest.approx(losses, rel=1e-4)
    assert losses[-1] < 0.99 * losses[0]
    assert (project / 'two/iter_4_deploy.pth').exists()  # one rank writes it

    # One process continues the run of two.
    (project / 'two/iter_4.pth').unlink()
    args = ('--work-dir', project / 'two', '--resume')
    run_in_process(monkeypatch, 'tools/train.py', config, *args)
    (rest,) = read(project / 'two', 1)
    assert [step['loss'] for step in rest] == pytest.approx(losses[2:], rel=1e-4)
    fused = [
        load_checkpoint(project / f'{run}/iter_4_deploy.pth')['state_dict']
        for run in ('one', 'two')
    ]
    torch.testing.assert_close(fused[1], fused[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ('environment', 'options', 'message'),
    [
        ({}, [], 'use tools/dist_train.sh or tools/dist_test.sh, or leave it out'),
        ({'RANK': '0'}, ['model.backbone.norm_cfg.type=SyncBN'], 'SyncBN works only on GPUs'),
    ],
    ids=['no torchrun', 'SyncBN'],
)
def test_errors(environment, options, message, digits, monkeypatch, tmp_path):
    monkeypatch.delenv('RANK', raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    options = [*narrow_options(digits), 'model.backbone.norm_cfg.type=BN', *options]
    args = [NARROW, '--launcher', 'pytorch', '--work-dir', tmp_path, *options]
    assert message in fail('train', *args, monkeypatch=monkeypatch)


@pytest.mark.parametrize('launcher', ['none', 'pytorch', 'slurm', 'mpi'])
def test_launchers_parse(launcher):
    args = make_parser('').parse_args(['config.py', '--launcher', launcher])
    assert args.launcher == launcher


@pytest.mark.parametrize(
    ('options', 'launcher'),
    [([], 'none'), (['--launcher', 'slurm'], 'slurm'), (['--cfg-options', 'launcher=mpi'], 'mpi')],
)
def test_launcher_of_the_config(options, launcher, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    assert load_config(make_parser('').parse_args([NARROW, *options])).launcher == launcher
