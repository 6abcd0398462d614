"""The command-line tools on a COCO-layout folder of digits, as a user runs them."""

import importlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.narrow_detector import CONFIG, narrow_options
from helpers.payload import Payload
from helpers.programs import ROOT, fail, run_python
from mmengine.config.utils import MODULE2PACKAGE

from mmvanilla import VanillaNet
from mmvanilla.checkpoint import load_checkpoint
from mmvanilla.models.folding.foldable import match


def logged(work_dir, key):
    """Values of a training log, in the order of the iterations."""
    return [line[key] for line in log_lines(work_dir) if 'loss' in line]


def log_lines(work_dir):
    lines = []
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        lines += [json.loads(line) for line in path.read_text().splitlines()]
    return lines


def test_training_run(trained):
    names = {path.name for path in trained.glob('*.pth*')}
    assert names == {'epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth', 'epoch_3_deploy.pth'}
    assert logged(trained, 'lambda') == [0.0] * 4 + [0.5] * 4 + [1.0] * 4
    assert all(loss > 0 for loss in logged(trained, 'loss'))


def test_resume_from_the_middle(trained, digits, run_tool, tmp_path):
    """λ, learning rate and losses equal those of the uninterrupted run, to the last digit."""
    (tmp_path / 'run').mkdir()
    shutil.copy(trained / 'epoch_1.pth', tmp_path / 'run')
    args = ['--work-dir', tmp_path / 'run', '--resume', *narrow_options(digits)]
    run_tool('tools/train.py', CONFIG, *args)
    for key in ('lambda', 'lr', 'base_lr', 'loss', 'loss_cls', 'loss_bbox'):
        assert logged(tmp_path / 'run', key) == logged(trained, key)[4:], key


def kill_when(condition, command):
    """Runs a training command, and kills it once a condition holds."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def train_command(work_dir, digits):
    options = narrow_options(digits)
    return [sys.executable, 'tools/train.py', CONFIG, '--work-dir', str(work_dir), *options]


def test_killed_run_goes_on(trained, digits, tmp_path):
    command = train_command(tmp_path, digits)
    kill_when((tmp_path / 'epoch_1.pth').exists, command)  # renamed into place, so complete
    # What a kill in the middle of mmengine's own writing would have left behind.
    (tmp_path / 'epoch_2.pth').write_bytes((tmp_path / 'epoch_1.pth').read_bytes()[:5000])
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    output = run_python(*command[1:], '--resume')
    assert 'resumed epoch: 1, iter: 4' in output
    assert logged(tmp_path, 'loss')[-8:] == logged(trained, 'loss')[4:]
    assert (tmp_path / 'epoch_3_deploy.pth').exists()


MERGING = ['custom_hooks.0.merge=True', 'train_cfg.max_epochs=4', 'train_cfg.val_interval=4']


@pytest.fixture(scope='module')
def merged_run(digits, tmp_path_factory):
    """A run of four epochs; the third begins with the merge."""
    work_dir = tmp_path_factory.mktemp('merging')
    run_python(*train_command(work_dir, digits)[1:], *MERGING)
    return work_dir


@pytest.mark.slow
@pytest.mark.parametrize(
    ('epoch', 'words'), [(1, ''), (2, 'training continues in merged form'), (3, '')], ids=str
)
def test_killed_merging_run_goes_on(epoch, words, merged_run, digits, tmp_path):
    """The run is killed before the merge, in the epoch that begins with it, or afterwards."""

    def killed_here():
        logs = ''.join(path.read_text() for path in tmp_path.glob('*/*.log'))
        return (tmp_path / f'epoch_{epoch}.pth').exists() and words in logs

    command = [*train_command(tmp_path, digits), *MERGING]
    kill_when(killed_here, command)
    assert f'resumed epoch: {epoch}, ' in run_python(*command[1:], '--resume')
    for key in ('loss', 'lr', 'lambda'):
        assert logged(tmp_path, key)[-4:] == logged(merged_run, key)[-4:], key
    (whole,) = [line for line in log_lines(merged_run) if 'coco/bbox_mAP' in line]
    (resumed,) = [line for line in log_lines(tmp_path) if 'coco/bbox_mAP' in line]
    assert resumed['coco/bbox_mAP'] == whole['coco/bbox_mAP']
    final = [load_checkpoint(run / 'epoch_4.pth') for run in (tmp_path, merged_run)]
    assert final[0]['meta']['form'] == 'merged'
    for name, value in final[0]['state_dict'].items():
        assert torch.equal(value, final[1]['state_dict'][name]), name


def average_precision(work_dir):
    (path,) = work_dir.glob('*/*.json')
    return json.loads(path.read_text())['coco/bbox_mAP']


def test_evaluation_in_every_form(trained, digits, run_tool, tmp_path):
    """A deep checkpoint, with and without --deploy, a merged and a fused one have the same AP."""
    backbone = VanillaNet('13', widen_factor=1 / 64, act_num=4, merged=True)
    weights = load_checkpoint(trained / 'epoch_3.pth')['state_dict']
    merged, _ = match(torch.nn.ModuleDict(dict(backbone=backbone)), weights)
    assert len(merged) < len(weights)
    torch.save(dict(state_dict=merged), tmp_path / 'merged.pth')
    runs = {
        'merged': [tmp_path / 'merged.pth'],
        'train_form': ['epoch_3.pth'],
        'fused_here': ['epoch_3.pth', '--deploy'],
        'fused_file': ['epoch_3_deploy.pth', '--deploy'],
        'fused_file_as_it_is': ['epoch_3_deploy.pth'],
    }
    results = {}
    for name, (checkpoint, *options) in runs.items():
        options += ['--work-dir', tmp_path / name, '--out', tmp_path / f'{name}.pkl']
        run_tool('tools/test.py', CONFIG, trained / checkpoint, *options, *narrow_options(digits))
        assert (tmp_path / f'{name}.pkl').stat().st_size > 0
        results[name] = average_precision(tmp_path / name)
    assert len(set(results.values())) == 1, results


def test_deploy_below_one_is_refused(trained, digits, monkeypatch, tmp_path):
    message = fail(
        'test',
        CONFIG,
        trained / 'epoch_2.pth',
        '--deploy',
        f'--work-dir={tmp_path}',
        *narrow_options(digits),
        monkeypatch=monkeypatch,
    )
    assert 'λ = 0.5' in message


@pytest.fixture
def bad_checkpoints(tmp_path):
    torch.save(dict(state_dict={}, meta=Payload(tmp_path / 'ran')), tmp_path / 'evil.pth')
    torch.save(dict(state_dict={'a': torch.ones(10000)}, message_hub={}), tmp_path / 'other.pth')
    (tmp_path / 'cut.pth').write_bytes((tmp_path / 'other.pth').read_bytes()[:9000])
    return tmp_path


@pytest.mark.parametrize('tool', ['train', 'test'])
@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('evil.pth', 'is refused: it holds posix.system'),
        ('cut.pth', 'is truncated'),
        ('none.pth', 'does not exist'),
    ],
)
def test_bad_checkpoint(tool, name, expected, bad_checkpoints, digits, monkeypatch):
    checkpoint = bad_checkpoints / name
    args = [CONFIG, '--resume', checkpoint] if tool == 'train' else [CONFIG, checkpoint]
    work_dir = bad_checkpoints / 'work'
    args += ['--work-dir', work_dir, *narrow_options(digits)]
    message = fail(tool, *args, monkeypatch=monkeypatch)
    assert name in message and expected in message
    assert not (bad_checkpoints / 'ran').exists()
    assert not work_dir.exists()


@pytest.mark.parametrize('channels', ['[8,16,32]', '[16,32]'])
def test_channels_of_another_backbone(channels, digits, monkeypatch, tmp_path):
    args = [CONFIG, f'--work-dir={tmp_path / "work"}', *narrow_options(digits)]
    args.append(f'model.neck.in_channels={channels}')
    message = fail('train', *args, monkeypatch=monkeypatch)
    assert 'but the backbone returns [16, 32, 64]: set it to that' in message
    assert not (tmp_path / 'work').exists()


def test_resume_from_weights_alone(trained, digits, monkeypatch, tmp_path):
    args = [CONFIG, f'--work-dir={tmp_path}', f'--resume={trained / "epoch_3_deploy.pth"}']
    message = fail('train', *args, *narrow_options(digits), monkeypatch=monkeypatch)
    assert 'epoch_3_deploy.pth holds only weights' in message


def test_checkpoint_of_another_size(trained, digits, monkeypatch, tmp_path):
    args = [CONFIG, trained / 'epoch_3.pth', f'--work-dir={tmp_path}', *narrow_options(digits)]
    message = fail('test', *args, 'model.bbox_head.num_classes=3', monkeypatch=monkeypatch)
    assert 'of another shape: bbox_head.retina_cls.weight (90, 8, 3, 3) instead of (27' in message


def test_checkpoint_of_another_model(bad_checkpoints, digits, monkeypatch):
    args = [CONFIG, bad_checkpoints / 'other.pth', f'--work-dir={bad_checkpoints}/work']
    message = fail('test', *args, *narrow_options(digits), monkeypatch=monkeypatch)
    assert 'other.pth does not fit RetinaNet: missing: ' in message


@pytest.mark.parametrize(
    ('option', 'expected'),
    [
        ('model.backbone.arch=14', "arch=14 is unknown: choose one of '5'"),
        ('model.backbone.out_indices=(1,2,4)', 'out_indices=(1, 2, 4) is out of range'),
        ('train_dataloader.dataset.data_root=nowhere/', 'no data at nowhere/annotations'),
        ('val_evaluator.ann_file=nowhere.json', 'no data at nowhere.json'),
        ('model.backbone.init_cfg.checkpoint=no.pth', 'pre-trained weights no.pth do not exist'),
        ('load_from=no.pth', 'checkpoint no.pth does not exist'),
    ],
)
def test_wrong_config(option, expected, digits, monkeypatch, tmp_path):
    options = narrow_options(digits)
    if 'init_cfg' in option:
        options.remove('model.backbone.init_cfg=None')
    args = [CONFIG, f'--work-dir={tmp_path}', *options, option]
    message = fail('train', *args, monkeypatch=monkeypatch)
    assert expected in message
    assert not list(tmp_path.rglob('*.pth'))


def test_no_coco(monkeypatch, tmp_path):
    message = fail(
        'train',
        CONFIG,
        f'--work-dir={tmp_path / "work"}',
        '--cfg-options',
        'model.backbone.init_cfg=None',
        'train_dataloader.dataset.data_root=no/coco/',
        monkeypatch=monkeypatch,
    )
    assert 'https://cocodataset.org' in message and 'under no/coco/' in message
    assert not (tmp_path / 'work').exists()


def test_no_imagenet(monkeypatch, tmp_path):
    (tmp_path / 'imagenet').mkdir()  # it exists, but is empty
    options = [f'train_dataloader.dataset.data_root={tmp_path}/imagenet']
    config = 'configs/imagenet/vanillanet-5_8xb128_in1k.py'
    args = [config, f'--work-dir={tmp_path / "work"}', '--cfg-options', *options]
    message = fail('train', *args, monkeypatch=monkeypatch)
    assert f'no data at {tmp_path}/imagenet/train: ImageNet-1k is at https://' in message
    assert not (tmp_path / 'work').exists()


def test_no_shallower_network(imagenet, monkeypatch, tmp_path):
    parts = ('train', 'val')
    options = [f'{part}_dataloader.dataset.data_root={imagenet}' for part in parts]
    config = 'configs/imagenet/vanillanet-11_8xb128_in1k.py'
    args = [config, f'--work-dir={tmp_path}', '--cfg-options', *options]
    message = fail('train', *args, monkeypatch=monkeypatch)
    assert 'weights work_dirs/vanillanet-10_8xb128_in1k/epoch_300.pth do not exist' in message
    assert '--cfg-options model.backbone.init_cfg=None' in message


def test_amp_on_a_cpu(digits, monkeypatch, tmp_path):
    args = [CONFIG, f'--work-dir={tmp_path}', '--amp', *narrow_options(digits)]
    message = fail('train', *args, monkeypatch=monkeypatch)
    assert '--amp needs a GPU' in message


@pytest.mark.parametrize(
    ('package', 'extra'),
    [('mmsegmentation', 'segmentation'), ('mmseg', 'onedl-segmentation')],
    ids=['original', 'fork'],
)
def test_no_mmsegmentation(package, extra, monkeypatch):
    """The message names the extra of the family that is installed."""
    import pkg_resources

    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', package)
    monkeypatch.setattr(importlib, 'reload', lambda module: module)  # it reloads pkg_resources
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)

    def find(name):
        raise pkg_resources.DistributionNotFound(name)

    monkeypatch.setattr(pkg_resources, 'get_distribution', find)
    message = fail(
        'train', 'configs/digits/upernet_vanillanet-6_digits.py', monkeypatch=monkeypatch
    )
    assert f'{package} is not installed' in message and f'pip install -e ".[{extra}]"' in message


def test_missing_config(monkeypatch):
    message = fail('train', 'configs/none.py', monkeypatch=monkeypatch)
    assert 'configs/none.py does not exist' in message


def test_exit_code_and_output():
    result = run_python('tools/train.py', 'configs/none.py', check=False)
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1].startswith('error: config configs/none.py')
    assert 'Traceback' not in result.stdout


@pytest.mark.parametrize(
    'script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'setup_env.sh']
)
def test_shell_scripts_parse(script):
    assert os.access(ROOT / 'tools' / script, os.X_OK)
    subprocess.run(['bash', '-n', f'tools/{script}'], cwd=ROOT, check=True)
