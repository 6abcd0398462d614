"""The tools that draw Figures 1 and 2 of the paper."""

import re
import runpy

import pytest
import torch
from helpers.networks import ARCHS
from helpers.pairs import zip_equal
from helpers.programs import ROOT, fail, run_python
from matplotlib import pyplot as plt
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS

from mmvanilla import switch_to_deploy

FIGURE1 = 'tools/paper/figure1.py'
FIGURE2 = 'tools/visualization/vis_cam.py'
VANILLANET = 'configs/digits/vanillanet-6_cluttered.py'
RESNET = 'configs/digits/resnet-50_cluttered.py'


@pytest.mark.parametrize('arch', ARCHS)
def test_architecture(arch, run_tool, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    words = []
    text = Axes.text
    monkeypatch.setattr(
        Axes, 'text', lambda *args, **kw: words.append(args[3]) or text(*args, **kw)
    )
    out = tmp_path / 'a.svg'
    run_tool(FIGURE1, f'configs/imagenet/vanillanet-{arch}_8xb128_in1k.py', '--out', out)
    assert '<svg' in out.read_text()
    depth = int(arch.split('-')[0])
    maps = [word for word in words if 'x' in word.split('\n')[-1] and 'conv' not in word]
    assert len(maps) == depth  # the image, and all layers but the classifier
    widest = 6144 if 'x1.5' in arch else 4096
    assert maps[-1] == f'{widest}\n' + ('10x10' if arch.endswith('ada') else '7x7')
    assert any('1000 classes' in word for word in words)
    stem = 'conv 4x4 /3\nseries act. 3' if arch.endswith('ada') else 'conv 4x4 /4\nseries act. 3'
    assert stem in words


def test_architecture_with_shortcuts(run_tool, tmp_path):
    plt.rcParams['svg.fonttype'] = 'none'  # keeps text as text
    config = 'configs/ablations/vanillanet-6_shortcut-after-act_8xb128_in1k.py'
    run_tool(FIGURE1, config, '--out', tmp_path / 'a.svg')
    assert (tmp_path / 'a.svg').read_text().count('after_act') == 4


def test_architecture_of_something_else(monkeypatch, tmp_path):
    options = ['--out', tmp_path / 'a.png']
    message = fail('paper/figure1', RESNET, *options, monkeypatch=monkeypatch)
    assert 'not for a classifier with a VanillaNet' in message


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp('digits') / 'digits'
    tool = 'tools/dataset_converters/digits_to_folders.py'
    run_python(tool, folder, '--cluttered', '--num-train=1', '--num-val=30')
    return folder


@pytest.fixture(scope='module')
def networks(digits, tmp_path_factory):
    """Configs and checkpoints: VanillaNet in deep form and fused, and ResNet-50."""
    folder = tmp_path_factory.mktemp('networks')
    found = []
    for number, path in enumerate((VANILLANET, RESNET)):
        cfg = Config.fromfile(ROOT / path)
        cfg.test_dataloader.dataset.data_root = str(digits)
        config = folder / f'{number}.py'
        cfg.dump(config)
        init_default_scope('mmpretrain')
        torch.manual_seed(number)
        model = MODELS.build(cfg.model)
        model.init_weights()
        checkpoint = folder / f'{number}.pth'
        torch.save(dict(state_dict=model.state_dict()), checkpoint)
        found.append(('--network', config, checkpoint))
        if number == 0:
            fused = folder / 'fused.pth'
            torch.save(dict(state_dict=switch_to_deploy(model).state_dict()), fused)
            found.append(('--network', config, fused))
    return found


class Guess:
    def __init__(self, *labels):
        self.labels = dict(zip_equal('abcdef', labels))

    def predict(self, path):
        return self.labels[path]


def test_choice_of_images(run_tool):
    """All images are of class 1. Both networks are right on b and e, and both are wrong on d."""
    choose = runpy.run_path(str(ROOT / FIGURE2))['choose']
    networks = [Guess(1, 1, 0, 0, 1, 1), Guess(0, 1, 1, 2, 1, 0)]
    infos = [dict(img_path=path, gt_label=1) for path in 'abcdef']
    found = [
        (name, [info['img_path'] for info in group]) for name, group in choose(networks, infos, 2)
    ]
    assert found == [('correct', ['b', 'e']), ('wrong', ['d', 'a'])]
    assert [len(group) for _, group in choose(networks, infos[:3], 4)] == [1, 2]


def test_side_by_side(networks, run_tool, tmp_path, capsys):
    out = tmp_path / 'a.png'
    run_tool(FIGURE2, *sum(networks, ()), '--num', '2', '--out', out)
    assert out.stat().st_size > 20_000
    assert f'Wrote {out}: ' in capsys.readouterr().out


def test_fused_map_is_the_same(networks, run_tool, tmp_path, digits, monkeypatch):
    """The fused network's map equals the trained one's, for the same class."""
    from matplotlib.axes import Axes

    shown = []
    show = Axes.imshow
    monkeypatch.setattr(Axes, 'imshow', lambda *args: shown.append(args[1]) or show(*args))
    image = next(digits.glob('val/*/*.jpg'))
    for layer in ((), ('--layer', 'backbone.blocks.1.act.relu') * 2):
        shown.clear()
        options = ['--images', image, '--out', tmp_path / 'a.png', *layer]
        run_tool(FIGURE2, *sum(networks[:2], ()), *options)
        trained, _, fused = shown
        assert abs(trained.astype(int) - fused.astype(int)).max() <= 2
        assert trained.std() > 10


def test_random_weights_without_data(run_tool, tmp_path, digits):
    image = next(digits.glob('val/*/*.jpg'))
    out = tmp_path / 'a.svg'
    plt.rcParams['svg.fonttype'] = 'none'  # keeps text as text
    config = 'configs/imagenet/vanillanet-5_8xb128_in1k.py'
    run_tool(FIGURE2, '--network', config, '--images', image, image, '--out', out)
    assert 'random weights' in out.read_text()
    classes = re.findall(r'>([A-Za-z \'-]{3,}), 0.00<', out.read_text())  # of ImageNet
    assert len(classes) == 2 and classes[0] == classes[1]


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--network', VANILLANET, '--layer', 'backbone.neck'], 'has no layer backbone.neck'),
        (['--network', VANILLANET, '--layer', 'backbone.blocks'], 'returns no feature map'),
        (['--network', VANILLANET, '--layer', 'head.fc'], 'no layer head.fc'),
        (['--network', 'configs/digits/retinanet_vanillanet-6_digits.py'], 'not for a classifier'),
        (['--network', 'configs/nothing.py'], 'configs/nothing.py does not exist'),
    ],
)
def test_wrong_input(args, message, monkeypatch, tmp_path, digits):
    image = next(digits.glob('val/*/*.jpg'))
    options = ['--images', image, '--out', tmp_path / 'a.png']
    assert message in fail('visualization/vis_cam', *args, *options, monkeypatch=monkeypatch)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--network', 'a', 'b', 'c'], 'takes a config and a checkpoint'),
        (['--network', 'a', '--layer', 'b', '--layer', 'c'], 'once for each --network'),
        (['--network', 'a', '--images', 'nothing.jpg'], 'nothing.jpg does not exist'),
        (['--network', 'a', '--num', '0'], '--num takes 1 or more'),
        (['--network', 'a', '--out', 'b.csv'], 'b.csv does not name a picture'),
    ],
)
def test_wrong_options(args, message, run_tool, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_tool(FIGURE2, '--out', tmp_path / 'a.png', *args)
    assert message in capsys.readouterr().err


def test_layers_in_the_docs_exist():
    """They are the layers of the full-scale command and of make figure2."""
    texts = [(ROOT / path).read_text() for path in ('docs/reproduction.md', 'Makefile')]
    pairs = re.findall(r'--network (configs/\S+) (?:\S+|\$\(.*?\)) --layer (\S+)', ''.join(texts))
    assert len(pairs) == 6
    init_default_scope('mmpretrain')
    for config, layer in pairs:
        MODELS.build(Config.fromfile(ROOT / config).model).get_submodule(layer)
