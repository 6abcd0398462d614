import get_flops
import pytest
import torch
import torch.nn.functional as F
from helpers.networks import ARCHS
from helpers.pairs import zip_equal
from helpers.programs import ROOT, fail, parse, run_python
from helpers.versions import needs_torch
from torch import nn

TOOL = 'tools/analysis_tools/get_flops.py'
CONFIGS = [f'configs/imagenet/vanillanet-{arch}_8xb128_in1k.py' for arch in ARCHS]
# Table 4 of the paper: parameters (M), FLOPs (G), depth.
TABLE4 = [
    *((15.5, 5.2, 5), (32.5, 6.0, 6), (32.8, 6.9, 7), (37.1, 7.7, 8), (41.4, 8.6, 9)),
    *((45.7, 9.4, 10), (50.0, 10.3, 11), (54.3, 11.1, 12), (58.6, 11.9, 13)),
    *((127.8, 26.5, 13), (127.8, 48.9, 13)),
]


@pytest.fixture(scope='module')
def rows():
    return parse(run_python(TOOL, *CONFIGS, '--deploy'))


@pytest.fixture
def table(run_tool, capsys):
    def make(*args):
        run_tool(TOOL, *args)
        return parse(capsys.readouterr().out)

    return make


def test_fused_models_equal_the_papers_table(rows):
    """They agree within one unit of the last digit, because the paper rounds down in places."""
    for config, row, (params, flops, depth) in zip_equal(CONFIGS, rows, TABLE4):
        assert row[0] in config and row[1] == '224x224'
        assert abs(float(row[2]) - params) < 0.1 and abs(float(row[3]) - flops) < 0.1
        assert int(row[4]) == depth
        assert [float(cell) for cell in row[5:7]] == [params, flops] and int(row[7]) == depth


def test_readme_shows_the_table(rows):
    readme = (ROOT / 'configs/imagenet/README.md').read_text()
    for row in rows:
        assert ' | '.join(row[2:]) in readme


def test_training_form_and_shape(table):
    (row,) = table(CONFIGS[0], '--shape', '256')
    (other,) = table(CONFIGS[0], '--shape', '256', '256')
    assert row == other and row[1] == '256x256' and len(row) == 5
    assert float(row[2]) == pytest.approx(22.33, abs=0.01)  # with pairs and norms
    assert int(row[4]) == 5


@pytest.mark.parametrize('channels', [1, 4])
def test_other_channels(channels, table):
    (row,) = table(CONFIGS[0], '--cfg-options', f'model.backbone.in_channels={channels}')
    (usual,) = table(CONFIGS[0])
    weights = 16 * 512 * (channels - 3) / 1e6
    assert float(row[2]) - float(usual[2]) == pytest.approx(weights, abs=0.011)


def test_small_images(monkeypatch):
    message = fail('analysis_tools/get_flops', CONFIGS[0], '--shape', '16', monkeypatch=monkeypatch)
    assert 'images of 16x16 are too small' in message


def test_config_of_the_package(table, monkeypatch):
    name = 'imagenet/vanillanet-5_8xb128_in1k.py'
    assert table(f'mmvanilla::{name}') == table(f'configs/{name}')
    message = fail('analysis_tools/get_flops', 'mmvanilla::none.py', monkeypatch=monkeypatch)
    assert 'configs/none.py does not exist' in message


def test_papers_figures_are_of_the_published_model(table):
    (row,) = table(CONFIGS[0], '--deploy', '--shape', '256')
    assert row[5:] == ['', '', ''] and float(row[2]) == 15.52
    (row,) = table(CONFIGS[0], '--deploy', '--cfg-options', 'model.backbone.act_num=4')
    assert row[5:] == ['', '', ''] and float(row[2]) > 15.52


def test_another_backbone(table, tmp_path):
    config = tmp_path / 'convnext.py'
    config.write_text("_base_ = 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'")
    (row,) = table(config)
    assert float(row[2]) == pytest.approx(28.59, abs=0.01)
    assert float(row[3]) == pytest.approx(4.47, abs=0.02)


def test_detector(table):
    (row,) = table(
        'configs/digits/retinanet_vanillanet-6_digits.py', '--deploy', '--shape', '128', '128'
    )
    assert row[5:] == ['', '', ''] and int(row[4]) == 5
    assert 0 < float(row[2]) < 1


PRODUCTS = {
    'baddbmm': (lambda x: torch.baddbmm(torch.zeros(2, 3, 5), x, torch.rand(2, 4, 5)), 120),
    'bmm': (lambda x: torch.bmm(x, torch.rand(2, 4, 5)), 120),
    'matmul': (lambda x: torch.rand(5, 3) @ x, 120),  # the first is broadcast
    'linear': (lambda x: F.linear(x, torch.rand(5, 4)), 120),
    'conv': (lambda x: F.conv1d(x, torch.rand(5, 3, 1)), 120),
    'einsum': (lambda x: torch.einsum('...c,ck->...k', x, torch.rand(4, 5)), 120),
}


@pytest.mark.parametrize('name', PRODUCTS)
def test_products(name):
    function, expected = PRODUCTS[name]
    model = nn.Module()
    model.forward = function
    assert get_flops.count_macs(model, torch.rand(2, 3, 4))[''] == {name: expected}


@needs_torch('2.0', 'scaled_dot_product_attention')
def test_attention():
    model = nn.Module()
    model.forward = lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, :2])
    found = get_flops.count_macs(model, torch.rand(2, 3, 4))['']
    assert found == {'scaled_dot_product_attention': 2 * 3 * 2 * (4 + 4)}


def test_early_outputs(table):
    """The layers after the last out index do not run."""
    options = ['model.backbone.out_indices=(1,)', 'model.head.in_channels=1024']
    (whole,) = table(CONFIGS[0])
    (early,) = table(CONFIGS[0], '--cfg-options', *options)
    assert 0 < float(early[3]) < float(whole[3])


def test_errors(run_tool, capsys, monkeypatch, tmp_path):
    message = fail('analysis_tools/get_flops', 'configs/none.py', monkeypatch=monkeypatch)
    assert 'config configs/none.py does not exist' in message
    config = tmp_path / 'config.py'
    config.write_text("_base_ = 'mmyolo::_base_/default_runtime.py'")
    message = fail('analysis_tools/get_flops', config, monkeypatch=monkeypatch)
    assert 'config.py cannot be read: mmyolo is not installed' in message
    capsys.readouterr()
    message = fail('analysis_tools/get_flops', CONFIGS[0], 'none.py', monkeypatch=monkeypatch)
    assert 'config none.py does not exist' in message
    assert '| config |' not in capsys.readouterr().out  # no half table
    with pytest.raises(SystemExit) as error:
        run_tool(TOOL, CONFIGS[0], '--shape', '1', '2', '3')
    assert error.value.code == 2
    assert '--shape takes a height and a width' in capsys.readouterr().err
