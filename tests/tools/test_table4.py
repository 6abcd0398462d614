"""Table 4 with measured latencies, and Figure 3."""

import copy
import csv

import cv2
import mmpretrain
import pytest
import table4
from helpers.programs import fail
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import LogLocator

import mmvanilla  # noqa: F401  adds our models to mmpretrain's list
from mmvanilla.cli.tables import read_table

TOOL = 'tools/paper/table4.py'
ROWS = read_table(table4.PUBLISHED)


def test_models_are_in_mmpretrain():
    assert len(ROWS) == 33 and sum(row['mmpretrain'] == '' for row in ROWS) == 5
    assert {row['mmpretrain'] for row in ROWS} - {''} <= set(mmpretrain.list_models())


def test_table(run_tool, monkeypatch, tmp_path):
    few = [row for row in ROWS if row['model'] in ('ViTAE-T', 'RepVGG-A0', 'VanillaNet-5')]
    monkeypatch.setattr('mmvanilla.cli.tables.read_table', lambda path: copy.deepcopy(few))
    options = ['--forms', 'deep', 'deploy', '--rounds', '1', '--shape', '32', '32']
    options += ['--csv', tmp_path / 'a.csv', '--figure3', tmp_path / 'a.png']
    run_tool(TOOL, *options)
    with open(tmp_path / 'a.csv') as file:
        rows = {row['model']: row for row in csv.DictReader(file)}
    assert list(rows) == [row['model'] for row in few]
    assert rows['ViTAE-T']['deploy (ms)'] == ''
    assert all(float(rows[model]['deploy (ms)']) > 0 for model in ('RepVGG-A0', 'VanillaNet-5'))
    assert rows['VanillaNet-5']['latency on A100 (ms)'] == '1.61'
    assert cv2.imread(str(tmp_path / 'a.png')).shape[:2] == (1430, 1760)


def test_figure3_is_legible(monkeypatch, tmp_path):
    """No label overlaps another or leaves its axes; ticks are 1, 2, 3, 5, 10, 20 etc."""
    figures = []
    monkeypatch.setattr(table4, 'write_figure', lambda figure, path: figures.append(figure))
    table4.draw_figure3(ROWS, table4.QUOTED_LATENCY, 'here', tmp_path / 'a.png')
    canvas = FigureCanvasAgg(figures[0])
    canvas.draw()
    renderer = canvas.get_renderer()
    for axis in figures[0].axes:
        frame = axis.get_window_extent(renderer)
        labels = {text.get_text(): text.get_window_extent(renderer) for text in axis.texts}
        labels.pop('', None)  # the lines that lead to the circles
        assert len(labels) == 33
        for name, box in labels.items():
            assert frame.x0 <= box.x0 and box.x1 <= frame.x1, name
            assert frame.y0 <= box.y0 and box.y1 <= frame.y1, name
            assert [other for other in labels if box.overlaps(labels[other])] == [name]
        assert isinstance(axis.xaxis.get_major_locator(), LogLocator)
        ticks = {tick.get_text() for tick in axis.get_xticklabels()}
        assert {'2', '3', '5', '10', '20'} <= ticks


def test_figure_without_adjust_text(monkeypatch, tmp_path):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    message = fail('paper/table4', '--figure3', tmp_path / 'a.png', monkeypatch=monkeypatch)
    assert '--figure3 needs adjustText: pip install adjustText' in message


def test_figure_of_another_format(run_tool, capsys):
    with pytest.raises(SystemExit):
        run_tool(TOOL, '--figure3', 'a.csv')
    assert 'a.csv does not name a picture: end it with .png' in capsys.readouterr().err


def test_graph_on_a_cpu(monkeypatch):
    message = fail('paper/table4', '--forms', 'graph', '--device', 'cpu', monkeypatch=monkeypatch)
    assert 'form graph is for GPUs' in message


def test_swin_computes_in_bfloat16():
    """Although mmpretrain makes its masks in float32."""
    case = table4.Case((1, 3, 224, 224), 'inference', 'cpu', 'bfloat16')
    (name,) = (row['mmpretrain'] for row in ROWS if row['model'] == 'Swin-T')
    (seconds,), (outputs,) = table4.time_forms(name, ['deploy'], case, 1)
    assert seconds > 0 and outputs.isfinite().all()
