import copy
import csv
import sys

import cv2
import mmpretrain
import pytest
from helpers.programs import ROOT, fail
from mmengine.fileio import load

import mmvanilla  # noqa: F401  mmpretrain's list has our models for it

sys.path.insert(0, str(ROOT / 'tools/analysis_tools'))
import table4
from table4 import read_table4

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


def test_table4_is_the_papers():
    """Where the metafile of our models says the same, it was checked against the paper already."""
    rows = read_table4()
    assert len(rows) == 33 and sum(row['mmpretrain'] == '' for row in rows) == 5
    assert {row['mmpretrain'] for row in rows} - {''} <= set(mmpretrain.list_models())
    ours = {row['mmpretrain']: row for row in rows}
    for model in load(ROOT / 'configs/imagenet/metafile.yml')['Models']:
        row, metadata = ours[model['Name']], model['Metadata']
        metrics = model['Results'][0]['Metrics']
        assert float(row['parameters (M)']) == metadata['Parameters'] / 1e6
        assert float(row['FLOPs (G)']) == metadata['FLOPs'] / 1e9
        assert int(row['depth']) == metadata['Depth']
        assert float(row['top-1']) == metrics['Top 1 Accuracy']
        assert float(row['ReaL top-1']) == metrics['ReaL Top 1 Accuracy']


def test_table4(run_tool, monkeypatch, tmp_path):
    few = [row for row in read_table4() if row['model'] in ('ViTAE-T', 'RepVGG-A0', 'VanillaNet-5')]
    monkeypatch.setattr(table4, 'read_table4', lambda: copy.deepcopy(few))
    options = ['--forms', 'deep', 'deploy', '--rounds', '1', '--shape', '32', '32']
    options += ['--csv', tmp_path / 'a.csv', '--figure3', tmp_path / 'a.png']
    run_tool(TOOL, '--table4', *options)
    with open(tmp_path / 'a.csv') as file:
        rows = {row['model']: row for row in csv.DictReader(file)}
    assert list(rows) == [row['model'] for row in few]
    assert rows['ViTAE-T']['deploy (ms)'] == ''
    assert all(float(rows[model]['deploy (ms)']) > 0 for model in ('RepVGG-A0', 'VanillaNet-5'))
    assert rows['VanillaNet-5']['latency on A100 (ms)'] == '1.61'
    assert cv2.imread(str(tmp_path / 'a.png')).shape[:2] == (1210, 1540)


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
        ([], 'name models of mmpretrain.list_models(), or give --table4'),
        (['vanillanet-5_in1k', '--table4'], 'or give --table4'),
        (['--table4', '--task', 'training'], '--table4 is of inference'),
        (['--table4', '--forms', 'merged'], 'a peer has no form merged'),
        (['vanillanet-5_in1k', '--figure3', 'a.png'], '--figure3 draws what --table4 measures'),
        (['resnet'], 'resnet is none of mmpretrain.list_models()'),
        (['resnet50_8xb32_in1k', '--forms', 'merged'], 'has no form merged'),
        (['vanillanet-5_in1k', '--task', 'training', '--forms', 'deploy'], 'cannot be trained'),
    ],
)
def test_errors(args, message, monkeypatch):
    assert message in fail('analysis_tools/benchmark', *args, monkeypatch=monkeypatch)


def test_figure_of_another_format(run_tool, capsys):
    with pytest.raises(SystemExit):
        run_tool('tools/analysis_tools/benchmark.py', '--table4', '--figure3', 'a.csv')
    assert 'a.csv is no name of a picture: end it with .png' in capsys.readouterr().err
