import csv

import benchmark
import pytest
import torch
from helpers.programs import fail, parse

TOOL = 'tools/analysis_tools/benchmark.py'


@pytest.mark.parametrize(
    ('task', 'forms'),
    [
        pytest.param('training', 'plain deep merged', marks=pytest.mark.slow),
        pytest.param('inference', 'plain plain-deploy merged optimized', marks=pytest.mark.slow),
        ('inference', 'plain-deploy'),
    ],
)
def test_forms(task, forms, run_tool, capsys, tmp_path):
    options = ['--task', task, '--forms', *forms.split(), '--rounds', '1', '--batch-size', '2']
    options += ['--shape', '32', '32', '--csv', tmp_path / 'a.csv']
    run_tool(TOOL, 'vanillanet-5_in1k', *options)
    with open(tmp_path / 'a.csv') as file:
        rows = list(csv.DictReader(file))
    assert [row['form'] for row in rows] == forms.split()
    assert all(float(row['error']) < 1e-4 for row in rows)
    assert all(float(row['ms']) > 0 and float(row['peak MiB']) > 50 for row in rows)
    printed = capsys.readouterr().out
    assert 'threads, torch' in printed and all(' | '.join(row.values()) in printed for row in rows)
    if task == 'training':
        memory = {row['form']: float(row['peak MiB']) for row in rows}
        assert memory['merged'] < memory['plain']


@pytest.mark.slow
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_training_in_other_precisions_and_layouts(precision, layout, run_tool, tmp_path):
    forms = ['plain', 'deep-cp', 'merged-cp']
    options = ['--task', 'training', '--rounds', '1', '--batch-size', '2', '--shape', '32', '32']
    options += ['--precision', precision, '--layout', layout, '--csv', tmp_path / 'a.csv']
    run_tool(TOOL, 'vanillanet-5_in1k', *options, '--forms', *forms)
    with open(tmp_path / 'a.csv') as file:
        rows = {row['form']: row for row in csv.DictReader(file)}
    assert list(rows) == forms
    assert float(rows['merged-cp']['peak MiB']) < float(rows['plain']['peak MiB'])


def test_inference_computes_in_the_precision():
    case = benchmark.Case((2, 3, 32, 32), 'inference', 'cpu', 'bfloat16', 'channels_last')
    images = case.images()
    assert images.dtype == torch.bfloat16
    assert images.is_contiguous(memory_format=torch.channels_last)
    model = case.put(torch.nn.Conv2d(3, 4, 3))
    assert model(images).dtype == torch.bfloat16


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_training_keeps_float32_weights(precision):
    case = benchmark.Case((2, 3, 32, 32), 'training', 'cpu', precision)
    model = case.put(torch.nn.Conv2d(3, 4, 3))
    assert model.weight.dtype == case.images().dtype == torch.float32
    with case.autocast():
        assert model(case.images()).dtype == case.dtype


@pytest.fixture
def rounding():
    parts = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [part.allow_tf32 for part in parts]
    yield lambda: [part.allow_tf32 for part in parts]
    for part, value in zip(parts, before):
        part.allow_tf32 = value


@pytest.mark.parametrize('precision', benchmark.PRECISIONS)
def test_only_tf32_rounds_to_it(precision, rounding):
    benchmark.set_precision('float32' if precision == 'tf32' else 'tf32')
    benchmark.set_precision(precision)
    assert rounding() == 2 * [precision == 'tf32']


def test_series_activation(run_tool, capsys):
    options = ['--batch-size', '1', '--rounds', '1']
    run_tool('tools/analysis_tools/series_activation.py', *options)
    rows = parse(capsys.readouterr().out)
    assert len(rows) == 4 * 2 * 3 * 2  # maps, layouts, parts, passes
    for *_, milliseconds, limit, times in rows:
        assert float(milliseconds) > 0 and float(limit) > 0 and float(times) > 0


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['resnet'], 'resnet is not in mmpretrain.list_models()'),
        (['resnet50_8xb32_in1k', '--forms', 'merged'], 'has no form merged'),
        (['vanillanet-5_in1k', '--task', 'training', '--forms', 'deploy'], 'cannot be trained'),
        (['vanillanet-5_in1k', '--forms', 'graph', '--device', 'cpu'], 'form graph is for GPUs'),
        (['resnet50_8xb32_in1k', '--forms', 'plain-graph'], 'has no form plain-graph'),
        (['vanillanet-5_in1k', '--precision', 'tf32', '--device', 'cpu'], 'tf32 is for GPUs'),
    ],
)
def test_errors(args, message, monkeypatch):
    assert message in fail('analysis_tools/benchmark', *args, monkeypatch=monkeypatch)
