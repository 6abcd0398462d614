"""The rows of the paper's Tables 1 to 3: their configs, and a small `make evidence`."""

from statistics import mean

import ablations
import numpy as np
import pytest
import torch
from helpers.networks import randomize, relative_error
from helpers.pairs import zip_equal
from helpers.programs import ROOT, parse
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS

from mmvanilla import (
    SeriesActivation,
    UsageError,
    merge_deep_convs,
    set_deep_training_lambda,
    switch_to_deploy,
)
from mmvanilla.checkpoint import load_checkpoint
from mmvanilla.cli.kept_runs import read_results
from mmvanilla.models import DeepConv
from mmvanilla.models.folding.network import check_fused

ROWS = ablations.read_rows([1, 2, 3])
CONFIGS = list({row['config']: None for row in ROWS})
# How many pairs and series activations the techniques make in each network.
PAIRS = {'VanillaNet-6': 6, 'AlexNet': 5, 'ResNet-50': 53}
ACTIVATIONS = {'VanillaNet-6': 5, 'AlexNet': 5, 'ResNet-50': 49}


def narrow(cfg):
    """Narrows VanillaNet to 1/64 of its width and ResNet to 1/8; AlexNet stays unchanged."""
    backbone, head = cfg.model.backbone, cfg.model.head
    if backbone.type == 'mmvanilla.VanillaNet':
        backbone.widen_factor = 1 / 64
        head.in_channels //= 64
    elif backbone.network.type == 'ResNet':
        backbone.network.update(base_channels=8, stem_channels=8)
        head.in_channels //= 8
    return cfg


def make_runner(config, imagenet, work_dir, full_size):
    cfg = Config.fromfile(ROOT / config)
    if not full_size:
        narrow(cfg)
    for name in ('train', 'val', 'test'):
        dataloader = cfg[f'{name}_dataloader']
        dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
        dataloader.dataset.update(data_root=str(imagenet), metainfo=dict(classes=('a', 'b')))
    cfg.test_evaluator = cfg.val_evaluator
    cfg.train_cfg.update(max_epochs=1, val_interval=2)
    cfg.work_dir = cfg.experiment_name = str(work_dir)
    cfg.log_level = 'ERROR'
    return Runner.from_cfg(cfg)


# AlexNet cannot be narrowed: make test runs it once, with both techniques; make test-slow runs all.
@pytest.mark.parametrize(
    ('config', 'full_size'),
    [(config, False) for config in CONFIGS if 'alexnet' not in config or 'deep-series' in config]
    + [pytest.param(config, True, marks=pytest.mark.slow) for config in CONFIGS],
)
def test_trains_merges_and_fuses(config, full_size, imagenet, tmp_path):
    runner = make_runner(config, imagenet, tmp_path, full_size)
    runner.train()
    assert runner.iter == 2
    assert all(torch.tensor(runner.message_hub.get_scalar('train/loss').data[0]).isfinite())
    model = runner.model.eval()
    convs = [module for module in model.modules() if isinstance(module, DeepConv)]
    deep = any(conv.is_deep for conv in convs)
    fused_file = tmp_path / 'epoch_1_deploy.pth'
    if deep:
        assert {conv.lambda_ for conv in convs} == {0}
        for function in (merge_deep_convs, switch_to_deploy):
            with pytest.raises(UsageError, match='λ = 0'):
                function(model)
        assert not fused_file.exists()
        set_deep_training_lambda(model, 1)
    else:  # the hook fused it, because there is no λ to wait for
        assert 'state_dict' in load_checkpoint(fused_file)
    randomize(model)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(images)
        merged, fused = merge_deep_convs(model), switch_to_deploy(model)
        check_fused(model, fused)
        for network in (merged, fused, switch_to_deploy(merged)):
            assert relative_error(network(images), expected) < 1e-4
    sizes = [sum(p.numel() for p in network.parameters()) for network in (model, merged, fused)]
    assert (sizes[1] < sizes[0]) == deep


@pytest.mark.parametrize('scale', ['ImageNet', 'digits'])
@pytest.mark.parametrize(
    'row', ROWS, ids=lambda row: f'{row["table"]}-{row["network"]}-{row["row"]}'
)
def test_row_is_what_it_says(row, scale):
    """The config has the pairs, series number, epochs of annealing and shortcut of its row."""
    deep = row['table'] != '2' or row['row'] in ('deep training', 'both')
    if scale == 'ImageNet':
        cfg = Config.fromfile(ROOT / row['config'])
        decay = cfg.custom_hooks[0].decay_epochs
    else:
        cfg = ablations.digits_config(ROOT / row['config'], 7)
        assert cfg.randomness.seed == 7
        decay = cfg.custom_hooks[0].decay_iters / 100
    assert decay == pytest.approx(cfg.train_cfg.max_epochs / 3 if deep else 0, abs=0.4)
    series = int(row['row'][-1]) if row['table'] == '1' else 3
    if row['row'] in ('neither', 'deep training'):
        # VanillaNet without series activation has series number 0 (section 3.2).
        series = 0 if row['network'] == 'VanillaNet-6' else None
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model)
    pairs = [m for m in model.modules() if isinstance(m, DeepConv) and m.is_deep]
    activations = [m for m in model.modules() if isinstance(m, SeriesActivation)]
    assert len(pairs) == (PAIRS[row['network']] if deep else 0)
    assert {a.conv.padding[0] for a in activations} == ({series} - {None})
    assert len(activations) == (0 if series is None else ACTIVATIONS[row['network']])
    shortcut = {'shortcut before act': 'before_act', 'shortcut after act': 'after_act'}
    assert cfg.model.backbone.get('shortcut') == shortcut.get(row['row'])


def test_flops_of_table_1(run_tool, capsys):
    """FLOPs agree within one unit of the last digit that the paper prints."""
    rows = [row for row in ROWS if row['table'] == '1']
    configs = [row['config'] for row in rows]
    run_tool('tools/analysis_tools/get_flops.py', *configs, '--deploy')
    counted = [float(line[3]) for line in parse(capsys.readouterr().out)]
    for found, row in zip_equal(counted, rows):
        assert abs(found - float(row['FLOPs (G)'])) < 0.0101


PAPER = {'a': 70.0, 'b': 75.0, 'c': 76.0, 'd': 77.0}


def test_verdicts():
    rows = {'a': [50.0, 52.0], 'b': [70.0, 72.0], 'c': [69.0, 75.0], 'd': [40.0, 42.0]}
    compared = ablations.compare(rows, PAPER)
    assert [line.name for line in compared] == ['d > c', 'c > b', 'b > a']
    assert [line.paper for line in compared] == [1, 1, 5]
    assert [line.here for line in compared] == [-31, 1, 20]
    # The variances of d, c, b and a, of two values each, are 2, 18, 2 and 2. So t is 31 / 10**0.5
    # with 1.22 degrees of freedom, 1 / 10**0.5 with as many, and 20 / 2**0.5 with 2.
    assert [line.cells()[4] for line in compared] == [
        'reversed (p = 0.041)',
        'not decided (p = 0.8)',
        'reproduced (p = 0.005)',
    ]
    # With 2 degrees of freedom, t is 4.3027.
    assert compared[2].interval == pytest.approx(
        (20 - 4.3027 * 2**0.5, 20 + 4.3027 * 2**0.5), rel=1e-4
    )


def test_interval_ends_where_p_is_5_percent():
    rows = {'d': [40.0, 42.0, 44.0], 'c': [69.0, 75.0]}
    (line,) = ablations.compare(rows, PAPER)
    for border in line.interval:
        moved = dict(rows, d=[value - border for value in rows['d']])
        assert ablations.compare(moved, PAPER)[0].p == pytest.approx(0.05)


# As tables of sample sizes have it, for a t-test of two samples of one variance (Cohen 1988), and
# by simulation for two variances.
@pytest.mark.parametrize(
    ('variances', 'difference', 'seeds'),
    [((1, 1), 1, 17), ((1, 1), -0.5, 64), ((4, 4), 1, 64), ((1, 1), 0.2, 394), ((1, 1), 3, 4)],
)
def test_seeds_needed(variances, difference, seeds):
    assert ablations.seeds_needed(*variances, difference) == seeds


def test_seeds_needed_see_the_difference():
    """Of simulated runs with as many seeds, the test sees the difference in four of five."""
    seeds = ablations.seeds_needed(9, 1, 2)
    rng = np.random.default_rng(0)
    seen = [
        ablations.ttest_ind(
            rng.normal(2, 3, (4000, n)), rng.normal(0, 1, (4000, n)), axis=1, equal_var=False
        ).pvalue
        < 0.05
        for n in (seeds - 2, seeds)
    ]
    assert seen[0].mean() < 0.8 < seen[1].mean() + 0.02


@pytest.mark.filterwarnings('error')
def test_verdict_without_deviation():
    (line,) = ablations.compare({'a': [50.0, 50.0], 'b': [60.0, 60.0]}, PAPER)
    assert line.cells()[2:] == ['10.00', '10.00 to 10.00', 'not decided (p = nan)', 'unknown']


def test_report_and_picture(tmp_path):
    found = {config: [60.0 + i, 61.0 + i, 62.5 + i] for i, config in enumerate(CONFIGS)}
    text = ablations.report(ROWS, found)
    for row in ROWS:
        values = found[row['config']]
        assert f'| {row["row"]} | {row["top-1"]} | {mean(values):.2f} ± 1.26 |' in text
    assert 'VanillaNet-6: n = 4 > n = 3 | 0.07 |' in text
    assert '| gain of VanillaNet-6 > gain of AlexNet | 10.71 |' in text
    assert '| gain of AlexNet > gain of ResNet-50 | 5.93 |' in text
    ablations.draw(ROWS, found, tmp_path / 'a.png')
    assert (tmp_path / 'a.png').stat().st_size > 10_000


def test_runs_and_goes_on(run_tool, tmp_path, monkeypatch, capsys):
    """Two runs train at a time on a tiny data set; finished runs are not repeated."""
    monkeypatch.chdir(ROOT)
    run_tool(
        'tools/dataset_converters/digits_to_folders.py',
        tmp_path / 'data',
        *('--cluttered', '--num-train=64', '--num-val=20'),
    )
    read = ablations.read_config

    def read_small(path, options=None):
        cfg = read(path, options)
        if 'digits' in str(path):
            for name in ('train', 'val', 'test'):
                cfg[f'{name}_dataloader'].dataset.data_root = str(tmp_path / 'data')
        return cfg

    monkeypatch.setattr(ablations, 'read_config', read_small)
    monkeypatch.setattr(ablations, 'BATCH_SIZE', 6400)
    monkeypatch.setattr(ablations, 'WORK_DIR', tmp_path / 'runs')
    configs = [CONFIGS[0], ROWS[5]['config']]
    left = tmp_path / f'runs/{ablations.Path(configs[0]).stem}_0/20260101_000000/vis_data'
    left.mkdir(parents=True)
    (left / 'scalars.json').touch()  # left by a run that was killed
    found = ablations.train_all(configs, 1, 2)
    for config in configs:
        folder = tmp_path / f'runs/{ablations.Path(config).stem}_0'
        assert read_results(folder) == dict(top1=found[config][0])
        assert (folder / 'epoch_9_deploy.pth').exists()
    monkeypatch.setattr(ablations.subprocess, 'run', None)  # would fail
    assert ablations.train_all(configs, 1, 2) == found
    monkeypatch.setattr(ablations, 'code_digest', lambda: 'other code')
    with pytest.raises(TypeError):  # so they would be run again
        ablations.train_all(configs, 1, 2)


def test_failed_run_names_its_log(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(ablations, 'WORK_DIR', tmp_path)
    monkeypatch.setattr(ablations.sys, 'executable', '/bin/false')
    monkeypatch.setattr(ablations, 'check_data', lambda *args: None)
    with pytest.raises(SystemExit, match=r'error: training failed: see .*_0\.\w+/log.txt'):
        ablations.train_all(CONFIGS[:1], 1, 1)


def test_interrupted(monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(ablations, 'train', interrupt)
    monkeypatch.setattr(ablations, 'check_data', lambda *args: None)
    with pytest.raises(SystemExit, match='Stopped. Runs that had ended are kept'):
        ablations.train_all(CONFIGS[:1], 1, 1)


def test_one_seed_is_refused(run_tool, capsys):
    with pytest.raises(SystemExit):
        run_tool('tools/paper/ablations.py', '--seeds', '1')
    assert '--seeds takes 2 or more' in capsys.readouterr().err


def test_data_are_asked_for_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablations, 'DIGITS_CONFIGS', ROOT / 'configs/digits')
    with pytest.raises(UsageError, match='no data at data/digits_cluttered/train'):
        ablations.train_all([ROOT / CONFIGS[0]], 2, 1)
