"""Settings of the scaled runs: each changes what it says and nothing else."""

import json

import ablations
import factors
import pytest
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS

from mmvanilla.compatibility import meta_device

ROWS = factors.rows_of('VanillaNet-6')


def flatten(part, place=''):
    """The values of a config by their places."""
    items = part.items() if isinstance(part, dict) else enumerate(part)
    for key, value in items:
        if isinstance(value, (dict, list, tuple)) and len(value):
            yield from flatten(value, f'{place}{key}.')
        else:
            yield f'{place}{key}', value


def config(row, setting):
    return ablations.digits_config(ROWS[row]['config'], 0, setting)


PAPER = {
    network: {name: float(row['top-1']) for name, row in factors.rows_of(network).items()}
    for network in factors.ROWS
}
LENGTH = ('train_cfg.max_epochs', 'train_cfg.val_interval', 'param_scheduler.1.end')
DECAY = 'custom_hooks.0.decay_iters'
ARCH = 'model.backbone.arch'
CHANGES = {
    'as-in-tables': {},
    'length-3': {**dict.fromkeys(LENGTH, 27), DECAY: 900},
    'length-10': {**dict.fromkeys(LENGTH, 90), DECAY: 3000},
    'length-30': {**dict.fromkeys(LENGTH, 270), DECAY: 9000},
    'images-9': {
        **dict.fromkeys(LENGTH, 1),
        'train_dataloader.dataset.data_root': 'data/digits_cluttered_57600',
    },
    'images-9-length-3': {
        **dict.fromkeys(LENGTH, 3),
        DECAY: 900,
        'train_dataloader.dataset.data_root': 'data/digits_cluttered_57600',
    },
    'images-9-length-9': {
        DECAY: 2700,  # as many epochs as in the tables
        'train_dataloader.dataset.data_root': 'data/digits_cluttered_57600',
    },
    'lambda-early': {DECAY: 100},
    'lambda-late': {DECAY: 600},
    'large-maps': {
        **{f'{ARCH}.channels.{i}': c for i, c in enumerate([512, 1024, 2048, 4096, 4096])},
        **{f'{ARCH}.strides.{i}': s for i, s in enumerate([2, 1, 1, 1])},
        'model.backbone.out_indices.0': 1,
    },
    'width-2': {'model.backbone.widen_factor': 1 / 16, 'model.head.in_channels': 256},
    'width-4': {'model.backbone.widen_factor': 1 / 8, 'model.head.in_channels': 512},
    'rate-half': {'optim_wrapper.optimizer.lr': 0.005},
    'rate-twice': {'optim_wrapper.optimizer.lr': 0.02},
    'no-decay': {'optim_wrapper.optimizer.weight_decay': 0.0},
    'shifted-images': {
        'train_dataloader.dataset.pipeline.1.type': 'RandomCrop',
        'train_dataloader.dataset.pipeline.1.crop_size': 64,
        'train_dataloader.dataset.pipeline.1.padding': 6,
        'train_dataloader.dataset.pipeline.2.type': 'PackInputs',
    },
}


@pytest.mark.parametrize('name', factors.SETTINGS)
@pytest.mark.parametrize('row', ['n = 1', 'neither'])
def test_setting_changes_what_it_says(name, row):
    setting = factors.SETTINGS[name]
    before, after = (
        dict(flatten(config(row, s).to_dict())) for s in (ablations.Setting(), setting)
    )
    changed = {place: value for place, value in after.items() if before.get(place) != value}
    expected = dict(CHANGES[name])
    if row == 'neither':  # λ = 1 throughout
        expected.pop(DECAY, None)
    assert changed == expected
    init_default_scope('mmpretrain')
    with meta_device():
        backbone = MODELS.build(config(row, setting).model).backbone
    size = 8 if name == 'large-maps' else 2
    assert backbone.out_strides == (64 // size,)


def test_rows_that_lambda_does_not_change_are_not_trained_again(monkeypatch):
    asked = []

    def train_all(configs, seeds, jobs, folder, setting):
        asked.append((folder, configs, setting))
        return {each: [1.0, 2.0] for each in configs}

    monkeypatch.setattr(factors, 'train_all', train_all)
    rows = {'n = 1': 'a', 'neither': 'b'}
    found = factors.train_rows('lambda-early', rows, 2, 1)
    assert found == {'n = 1': [1.0, 2.0], 'neither': [1.0, 2.0]}
    setting = factors.SETTINGS['lambda-early']
    assert asked == [('lambda-early', ['a'], setting), ('', ['b'], ablations.Setting())]


def test_training_loss_is_of_the_end(tmp_path):
    log = tmp_path / '20260101_000000/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    lines = [{'loss': float(i), 'iter': i} for i in range(10)] + [{'accuracy/top1': 50.0}]
    log.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    assert factors.training_loss(tmp_path) == 7.0


def test_orderings():
    accuracies = {
        'n = 1': [70.0, 71.0, 72.0],
        'n = 3': [60.0, 61.0, 62.0],
        'n = 0': [1.0, 2.0, 3.0],
    }
    ((name, by, here, interval, verdict, seeds),) = factors.orderings(
        accuracies, PAPER['VanillaNet-6']
    )
    # A deviation of 1, so 0.8165 of the difference; 2.7764 of that with 4 degrees of freedom
    assert (name, by, here, interval) == ('n = 3 > n = 1', '1.83', '-10.00', '-12.27 to -7.73')
    assert verdict.startswith('reversed')
    assert seeds == '6'  # for a difference of 1.83 deviations


def test_common_rows_are_those_of_table_1():
    rows = {(row['network'], row['row']): row for row in ablations.read_rows([2, 3])}
    for (network, name), common in factors.COMMON.items():
        for key in ('config', 'top-1'):
            assert rows[network, name][key] == factors.rows_of(network)[common][key]


@pytest.mark.parametrize('network', factors.ROWS)
def test_default_rows_and_pairs_exist(network):
    assert set(factors.ROWS[network]) <= set(factors.rows_of(network))
    assert list(factors.orderings({n: [1.0, 2.0] for n in factors.ROWS[network]}, PAPER[network]))


def test_settings_of_vanillanet_are_refused_for_others(run_tool, capsys):
    with pytest.raises(SystemExit):
        run_tool(
            'tools/paper/factors.py', '--network', 'AlexNet', '--settings', 'length-3', 'width-2'
        )
    message = "AlexNet has no setting 'width-2': choose of as-in-tables, length-3, length-10"
    assert message in capsys.readouterr().err


def test_settings_of_whole_epochs_fit():
    of_alexnet = [
        name for name in factors.SETTINGS if factors.fits('AlexNet', factors.SETTINGS[name])
    ]
    assert 'images-9' not in of_alexnet  # a third of an epoch
    assert {'images-9-length-3', 'images-9-length-9'} <= set(of_alexnet)
    assert all(factors.fits('VanillaNet-6', setting) for setting in factors.SETTINGS.values())


@pytest.mark.parametrize('network', factors.ROWS)
@pytest.mark.parametrize('options', [[], ['--long']])
def test_default_settings_fit(network, options, monkeypatch):
    monkeypatch.setattr('sys.argv', ['factors.py', '--network', network, *options])
    chosen = factors.parse_args().settings
    assert chosen and set(chosen) <= set(factors.SETTINGS)
    assert ('images-9' in chosen) == (network == 'VanillaNet-6' and not options)
    assert 'length-3' in chosen if options else 'as-in-tables' in chosen


def test_unknown_row_is_named(run_tool, capsys):
    with pytest.raises(SystemExit):
        run_tool('tools/paper/factors.py', '--network', 'AlexNet', '--rows', 'n = 1')
    assert "AlexNet has no row 'n = 1': choose of neither, deep training" in capsys.readouterr().err
