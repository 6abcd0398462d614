"""The demos with several seeds: runs are kept, and the table says how much they vary."""

import json
import os
import subprocess
import sys
import time

import pytest
import seeds
import skeleton
import torch
from helpers.programs import ROOT
from skeleton import Run, describe_run, spread, train_once

from mmvanilla import UsageError
from mmvanilla.cli.options import read_config

CONFIG = str(ROOT / 'configs/digits/retinanet_vanillanet-6_digits.py')


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
        folders.append(folder)
        return make_run(folder)

    monkeypatch.setattr(skeleton, 'train_and_evaluate', train)
    return folders


def test_runs_are_kept(trained, tmp_path):
    asked = describe_run('a = 1', 3)
    run = train_once(CONFIG, tmp_path / 'a', asked)
    assert (run.folder, run.trained) == (tmp_path / 'a', tmp_path / 'a/epoch_7.pth')
    assert run._replace(folder=0) == make_run(tmp_path / 'a/other')._replace(
        folder=0, trained=run.trained, fused=run.fused
    )
    assert train_once(CONFIG, tmp_path / 'a', asked) == run
    assert len(trained) == 1 and not trained[0].exists()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda asked, patch: describe_run('a = 2', 3), 'another config'),
        (lambda asked, patch: describe_run('a = 1', 4), 'another seed'),
        (lambda asked, patch: describe_run('a = 1', 3, 'b'), 'other data'),
        (
            lambda asked, patch: (
                patch.setattr(skeleton, 'code_digest', lambda: 'c') or describe_run('a = 1', 3)
            ),
            'another version of mmvanilla',
        ),
        (
            lambda asked, patch: (
                patch.setattr(torch, 'get_num_threads', lambda: 99) or describe_run('a = 1', 3)
            ),
            'another machine or number of threads',
        ),
    ],
)
def test_other_runs_are_refused(change, message, trained, tmp_path, monkeypatch):
    asked = describe_run('a = 1', 3)
    train_once(CONFIG, tmp_path / 'a', asked)
    changed = change(asked, monkeypatch)
    with pytest.raises(UsageError, match=f'/a holds a run with {message}: remove it'):
        train_once(CONFIG, tmp_path / 'a', changed)
    assert len(trained) == 1


def test_what_was_stopped_leaves_nothing(tmp_path, monkeypatch):
    def stop(config, folder, *options):
        (folder / 'checkpoint.pth').write_text('half')
        sys.exit(143)

    monkeypatch.setattr(skeleton, 'train_and_evaluate', stop)
    with pytest.raises(SystemExit):
        train_once(CONFIG, tmp_path / 'a', describe_run('a = 1', 3))
    assert not list(tmp_path.iterdir())


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
