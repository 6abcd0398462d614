"""The demos with several seeds: runs are kept, and the table says how much they vary."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import seeds
import skeleton
import torch
from helpers.programs import ROOT, fail, reserved_by_another
from skeleton import Run, describe_run, spread, train_once

from mmvanilla import UsageError
from mmvanilla.cli import kept_runs
from mmvanilla.cli.options import read_config


def make_run(folder, ap=0.5):
    (folder / '1/vis_data').mkdir(parents=True)
    lines = [dict(loss=1.0, step=i, time=0.1 * i) for i in range(1, 21)]
    (folder / '1/vis_data/scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    trained = folder / 'epoch_7.pth'
    metrics = {'coco/bbox_mAP': ap, 'coco/segm_mAP': ap / 2}
    return Run(folder, 3.5, trained, folder / 'epoch_7_deploy.pth', metrics, metrics)


@pytest.fixture
def trained(monkeypatch):
    """The folders in which runs were trained, for a moment each."""
    folders = []

    def train(config, folder, *options):
        assert options == ('--cfg-options', 'randomness.seed=3')
        assert Path(config) == folder / 'config.py'
        assert Path(config).read_text() == 'a = 1'
        folders.append(folder)
        return make_run(folder)

    monkeypatch.setattr(skeleton, 'train_and_evaluate', train)
    return folders


def test_runs_are_kept(trained, tmp_path):
    asked = describe_run('a = 1', 3)
    run = train_once(tmp_path / 'a', asked)
    assert (run.folder, run.trained) == (tmp_path / 'a', tmp_path / 'a/epoch_7.pth')
    assert run._replace(folder=0) == make_run(tmp_path / 'a/other')._replace(
        folder=0, trained=run.trained, fused=run.fused
    )
    assert train_once(tmp_path / 'a', asked) == run
    assert len(trained) == 1 and not trained[0].exists()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda asked, patch: describe_run('a = 2', 3),
            r'another config: a = 1 instead of a = 2\)',
        ),
        (lambda asked, patch: describe_run('a = 1', 4), r'another seed\)'),
        (lambda asked, patch: describe_run('a = 1', 3, 'b'), r'other data\)'),
        (
            lambda asked, patch: (
                patch.setattr(skeleton, 'code_digest', lambda: 'c') or describe_run('a = 1', 3)
            ),
            r'another version of mmvanilla\)',
        ),
        (
            lambda asked, patch: (
                patch.setattr(torch, 'get_num_threads', lambda: 99) or describe_run('a = 1', 3)
            ),
            'another machine or number of threads: .* instead of .*, 99 threads, torch',
        ),
    ],
)
def test_other_runs_are_refused(change, message, trained, tmp_path, monkeypatch):
    asked = describe_run('a = 1', 3)
    train_once(tmp_path / 'a', asked)
    changed = change(asked, monkeypatch)
    with pytest.raises(UsageError, match=rf'not the runs that you ask for: .*/a \({message}'):
        train_once(tmp_path / 'a', changed)
    assert len(trained) == 1


@pytest.mark.parametrize(
    'make',
    [
        lambda path: (path.mkdir(), (path / 'precious.pth').touch()),
        lambda path: path.touch(),
        lambda path: path.symlink_to('nowhere'),
        lambda path: (path.mkdir(), (path / 'results.json').write_text('{"asked": ')),
        lambda path: (path.mkdir(), (path / 'results.json').write_text('[]')),
        lambda path: (path.mkdir(), (path / 'results.json').write_text('{"asked": []}')),
    ],
)
def test_other_files_are_refused(make, trained, tmp_path):
    make(tmp_path / 'a')
    with pytest.raises(UsageError, match=r'/a \(no finished run\). Ask for the same, remove them,'):
        train_once(tmp_path / 'a', describe_run('a = 1', 3))
    assert not trained


@pytest.mark.skipif(os.name == 'nt', reason='Windows has no locks')
def test_a_training_that_goes_on_is_left_alone(trained, tmp_path):
    """As one does whose command was killed."""
    with reserved_by_another(tmp_path / 'a.running'):
        (tmp_path / 'a.running/checkpoint.pth').touch()
        with pytest.raises(UsageError, match='another run is using .*/a.running: wait until it'):
            train_once(tmp_path / 'a', describe_run('a = 1', 3))
    assert (tmp_path / 'a.running/checkpoint.pth').exists() and not trained


def test_all_that_do_not_fit_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for i in range(2):
        (tmp_path / f'upernet_{i}').mkdir()
    sentence = fail('demos/seeds', 'upernet', '--work-dir', tmp_path, monkeypatch=monkeypatch)
    assert f'{tmp_path}/upernet_0 (no finished run), {tmp_path}/upernet_1 (no' in sentence


def test_digest_is_of_what_trains_and_evaluates(tmp_path, monkeypatch):
    package = tmp_path / 'package'
    for name in ('package/cli/a.py', 'package/.mim/tools/train.py', 'package/.mim/tools/test.py'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(kept_runs, '__file__', str(package / 'cli/a.py'))
    monkeypatch.setattr(kept_runs, 'find_root', lambda: package / '.mim')
    digests = {kept_runs.code_digest()}
    for path in package.rglob('*.py'):
        path.write_text('changed')
        digests.add(kept_runs.code_digest())
    monkeypatch.setattr(kept_runs, 'installed_version', lambda name: '99')
    digests.add(kept_runs.code_digest())
    assert len(digests) == 5


@pytest.mark.parametrize('code', [143, 'tools/test.py failed'])
def test_what_a_stopped_run_left_is_replaced(code, tmp_path, monkeypatch):
    """Until then it can be looked at: training may have been long."""

    def stop(config, folder, *options):
        assert [path.name for path in folder.iterdir()] == ['config.py']
        (folder / 'checkpoint.pth').write_text('whole')
        sys.exit(code)

    monkeypatch.setattr(skeleton, 'train_and_evaluate', stop)
    for _ in range(2):
        with pytest.raises(SystemExit):
            train_once(tmp_path / 'a', describe_run('a = 1', 3))
        assert (tmp_path / 'a.running/checkpoint.pth').exists()
        assert not (tmp_path / 'a').exists()
    monkeypatch.setattr(skeleton, 'train_and_evaluate', lambda _, folder, *__: make_run(folder))
    train_once(tmp_path / 'a', describe_run('a = 1', 3))
    assert [path.name for path in tmp_path.iterdir()] == ['a']
    assert not (tmp_path / 'a/checkpoint.pth').exists()


@pytest.mark.skipif(os.name == 'nt', reason='Windows has no SIGTERM')
def test_sigterm_ends_the_tool_too(tmp_path):
    (tmp_path / 'demos').mkdir()
    (tmp_path / 'tool.py').write_text(
        f'import os, pathlib, time\npathlib.Path({str(tmp_path / "pid")!r}).write_text('
        'str(os.getpid()))\ntime.sleep(99)\n'
    )
    code = (
        f'import sys; sys.path.insert(0, {str(ROOT / "tools/demos")!r}); import skeleton; '
        f'skeleton.__file__ = {str(tmp_path / "demos/skeleton.py")!r}; skeleton.run_tool("tool")'
    )
    demo = subprocess.Popen([sys.executable, '-c', code])
    for _ in range(600):
        if (tmp_path / 'pid').exists() and (tmp_path / 'pid').read_text():
            break
        time.sleep(0.1)
    demo.terminate()
    assert demo.wait(20) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / 'pid').read_text()), 0)


def test_no_detection_counts_as_0(tmp_path):
    runs = [make_run(tmp_path / '0'), make_run(tmp_path / '1')._replace(metrics={})]
    ((_, _, trained, fused, by_seed, *_),) = seeds.rows('retinanet', runs)
    assert (trained, fused, by_seed) == ('0.250 ± 0.354', '0.500 ± 0.000', '0.500, 0.000')


def test_table(tmp_path):
    runs = [make_run(tmp_path / str(i), ap) for i, ap in enumerate((0.5, 0.52, 0.57))]
    first, second = seeds.rows('mask_rcnn', runs)
    box, mask = '0.530 ± 0.036', '0.265 ± 0.018'
    assert first == ['mask_rcnn', 'box AP', box, box, '0.500, 0.520, 0.570', '3.5', '1.950']
    assert second[:5] == ['mask_rcnn', 'mask AP', mask, mask, '0.250, 0.260, 0.285']
    assert spread([0.5], '.2f') == '0.50'


def test_unknown_network_is_named(run_tool, capsys):
    with pytest.raises(SystemExit):
        run_tool('tools/demos/seeds.py', 'retina')
    assert 'no network is called retina: choose of retinanet' in capsys.readouterr().err


@pytest.mark.parametrize('name', seeds.NETWORKS)
def test_configs_and_metrics_exist(name):
    cfg = read_config(ROOT / f'configs/digits/{seeds.NETWORKS[name].config}.py')
    known = {
        'CocoMetric': ['coco/bbox_mAP', 'coco/segm_mAP'],
        'IoUMetric': ['mIoU'],
        'Accuracy': ['accuracy/top1'],
    }
    evaluator = cfg.val_evaluator[0] if isinstance(cfg.val_evaluator, list) else cfg.val_evaluator
    metrics = list(seeds.NETWORKS[name].metrics.values())
    assert set(metrics) <= set(known[evaluator.type])
    if evaluator.type == 'CocoMetric':
        assert len(metrics) == (2 if 'segm' in evaluator.metric else 1)


def test_interrupted(tmp_path, monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(skeleton, 'train_and_evaluate', interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_once(tmp_path / 'a', describe_run('a = 1', 3))
    assert 'The same command keeps the finished runs, and starts this' in capsys.readouterr().out
