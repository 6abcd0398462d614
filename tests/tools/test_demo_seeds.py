"""The demos with several seeds: runs are kept, and the table says how much they vary."""

import json

import pytest
import seeds
import skeleton
from helpers.programs import ROOT
from skeleton import Run, spread, train_once

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


def test_runs_are_kept(tmp_path, monkeypatch):
    trained = []

    def train(config, folder, *options):
        trained.append(options)
        return make_run(folder)

    monkeypatch.setattr(skeleton, 'train_and_evaluate', train)
    run = train_once(CONFIG, tmp_path / 'a', 3)
    assert trained == [('--cfg-options', 'randomness.seed=3')]
    assert train_once(CONFIG, tmp_path / 'a', 3) == run
    assert len(trained) == 1
    changed = read_config(CONFIG, {'train_cfg.max_epochs': 1})
    with monkeypatch.context() as patch:
        patch.setattr(skeleton, 'read_config', lambda path: changed)
        with pytest.raises(UsageError, match='/a holds a run with another config: remove it'):
            train_once(CONFIG, tmp_path / 'a', 3)
    with pytest.raises(UsageError, match='holds a run with another seed'):
        train_once(CONFIG, tmp_path / 'a', 4)
    (tmp_path / 'a/results.json').unlink()  # as if the run had been stopped
    with pytest.raises(FileExistsError):  # it starts over, here into the same folder
        train_once(CONFIG, tmp_path / 'a', 3)
    assert len(trained) == 2


def test_other_data_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(skeleton, 'train_and_evaluate', lambda config, folder, *_: make_run(folder))
    data = tmp_path / 'train.json'
    data.write_text('{}')
    run = train_once(CONFIG, tmp_path / 'a', 0, [data])
    assert train_once(CONFIG, tmp_path / 'a', 0, [data]) == run
    data.write_text('{"images": []}')
    with pytest.raises(UsageError, match='holds a run with other data'):
        train_once(CONFIG, tmp_path / 'a', 0, [data])


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
