import csv

import pytest
from helpers.programs import fail

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


def test_series_activation(run_tool, capsys):
    options = ['--batch-size', '1', '--rounds', '1']
    run_tool('tools/analysis_tools/series_activation.py', *options)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if '@' in line]
    assert len(rows) == 4 * 2 * 3 * 2  # maps, layouts, parts, passes
    for *_, milliseconds, limit, times in rows:
        assert float(milliseconds) > 0 and float(limit) > 0 and float(times) > 0


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['resnet'], 'resnet is not in mmpretrain.list_models()'),
        (['resnet50_8xb32_in1k', '--forms', 'merged'], 'has no form merged'),
        (['vanillanet-5_in1k', '--task', 'training', '--forms', 'deploy'], 'cannot be trained'),
    ],
)
def test_errors(args, message, monkeypatch):
    assert message in fail('analysis_tools/benchmark', *args, monkeypatch=monkeypatch)
