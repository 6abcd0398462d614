"""Every command, snippet and link on the pages."""

import re
import shlex
import shutil
import subprocess
from itertools import dropwhile
from pathlib import Path

import pytest
import torch
from helpers.programs import ROOT, run_python
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS as CLASSIFIERS
from packaging.requirements import Requirement

from mmvanilla import SeriesActivation
from mmvanilla.models import DeepConv
from mmvanilla.version import __version__

MADE = ('checkpoints/', 'data/', 'work_dirs/')
BLOCK = re.compile(r'```(\w*)\n(.*?)```', re.S)
PAGES = [
    *(ROOT / name for name in ('README.md', 'CONTRIBUTING.md')),
    *(ROOT / 'configs').rglob('README.md'),
    *(ROOT / 'docs').glob('*.md'),
]
BLOCKS = {path.relative_to(ROOT): BLOCK.findall(path.read_text()) for path in PAGES}
COMMANDS = sorted(
    {
        line
        for blocks in BLOCKS.values()
        for language, code in blocks
        if language == 'bash'
        for line in code.strip().splitlines()
    }
)


def snippet(page, start):
    """The only Python block on a page that begins with ``start``."""
    blocks = BLOCKS[Path(page)]
    (found,) = (
        code for language, code in blocks if language == 'python' and code.startswith(start)
    )
    return found


def test_snippet_prints_what_it_says():
    code = snippet('README.md', 'import torch')
    printed = next(text for language, text in BLOCKS[Path('README.md')] if language == '')
    assert run_python('-c', code).strip() == printed.strip()
    assert len(code.strip().splitlines()) <= 10


def test_mmpretrain_snippet(imagenet, tmp_path):
    code = snippet('configs/imagenet/README.md', 'import mmpretrain')
    shutil.copy(next(imagenet.glob('val/*/*.JPEG')), tmp_path / 'photo.jpg')
    output = run_python('-W', 'ignore', '-c', code, cwd=tmp_path).splitlines()
    assert str([f'vanillanet-{depth}_in1k' for depth in (10, 11, 12, 13)]) in output
    assert 0 < float(output[-1].split()[-1]) < 1  # class and score


@pytest.mark.parametrize(
    ('page', 'start', 'base', 'check'),
    [
        (
            'README.md',
            'model = ',
            'retinanet_vanillanet13',
            lambda cfg: MODELS.build(cfg.model).backbone.out_channels == (1024, 2048, 4096),
        ),
        (
            'docs/deep_training.md',
            'custom_hooks = ',
            'retinanet_vanillanet13',
            lambda cfg: cfg.custom_hooks[0].decay_epochs == 100,
        ),
        (
            'docs/deep_training.md',
            'optim_wrapper = ',
            'retinanet_vanillanet13',
            lambda cfg: cfg.optim_wrapper.paramwise_cfg.blocks_per_layer == 2,
        ),
        (
            'docs/deep_training.md',
            'optim_wrapper = ',
            'coco/retinanet_swin-t_coco',  # whose own optimizer must not shine through
            lambda cfg: set(cfg.optim_wrapper.optimizer) == {'type', 'lr', 'weight_decay'},
        ),
        (
            'docs/deep_training.md',
            'model = ',
            'retinanet_vanillanet13',
            lambda cfg: techniques_of(MODELS.build(cfg.model.backbone)) == (53, 49),
        ),
        (
            'docs/deep_training.md',
            'model = ',
            'ablations/resnet-50_neither_8xb32_in1k',
            lambda cfg: techniques_of(CLASSIFIERS.build(cfg.model.backbone)) == (53, 49),
        ),
    ],
)
def test_config_snippets(page, start, base, check, tmp_path):
    (tmp_path / 'a.py').write_text(f"_base_ = '{ROOT}/configs/{base}.py'\n{snippet(page, start)}")
    cfg = Config.fromfile(tmp_path / 'a.py')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        assert check(cfg)


def techniques_of(network):
    """How many deep convolutions and series activations a network has."""
    modules = list(network.modules())
    return tuple(sum(isinstance(m, kind) for m in modules) for kind in (DeepConv, SeriesActivation))


def test_techniques_snippet():
    found = {}
    exec(snippet('docs/deep_training.md', 'from mmvanilla import'), found)
    assert techniques_of(found['model']) == (8, 8)


def test_mmsegmentation_snippet(tmp_path):
    pytest.importorskip('mmseg')
    config = tmp_path / 'config.py'
    config.write_text(snippet('docs/works_with.md', "_base_ = 'mmseg::"))
    cfg = Config.fromfile(config)
    cfg.model.backbone.widen_factor = 1 / 64
    cfg.model.decode_head.in_channels = [8, 16, 32, 64]
    cfg.model.auxiliary_head.in_channels = 32
    cfg.model.decode_head.norm_cfg = cfg.model.auxiliary_head.norm_cfg = dict(type='BN')
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model).eval()
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 150, 16, 16)


def test_links():
    """Links between pages lead to files and headings that exist."""
    for path in PAGES:
        for link in re.findall(r'\]\(([^)]+)\)', path.read_text()):
            if '://' in link:
                continue
            name, _, anchor = link.partition('#')
            target = (path.parent / name).resolve() if name else path
            assert target.exists(), (path, link)
            if anchor:
                heads = re.findall(r'^#+ (.+)$', target.read_text(), re.M)
                anchors = {re.sub(r'[^\w -]', '', head).lower().replace(' ', '-') for head in heads}
                assert anchor in anchors, (path, link)


@pytest.mark.parametrize(
    'message',
    [
        'does not work with mmvanilla: install ',
        'are both installed',
        'mmengine needs pkg_resources',
        'torch.compile does not work here',
        'pre-trained weights ',
        'its series number is ',
        'a pair merges only at 1',
        'is truncated or not a checkpoint',
        'is refused: it holds ',
        'the run diverged: at iteration ',
        'no run can resume from what is there',
        'another run is using ',
        'the network has fused weights, which are only for inference',
        'No fused checkpoint was written: λ is ',
        'has values that are not finite, so the run diverged',
        'names the weights of another backbone',
        'an optimized network cannot load weights',
        'SyncBN works only on GPUs',
        'merging does not work ',
    ],
)
def test_troubleshooting_quotes_the_messages(message):
    sources = ''.join(path.read_text() for path in (ROOT / 'mmvanilla').rglob('*.py'))
    assert message in re.sub(r"'\s*\n\s*f?'", '', sources)
    assert message.strip() in (ROOT / 'docs/troubleshooting.md').read_text()


@pytest.mark.parametrize('command', COMMANDS)
def test_command(command, run_tool, capsys):
    """Make targets exist; tools know the options; files are where the command looks for them."""
    words = shlex.split(command)
    program, *args = dropwhile(lambda word: re.match(r'[A-Z_]+=', word), words)
    if program == 'make':
        subprocess.run(['make', '-n', *args], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    elif program == 'pip':  # test_environments.py compares versions, test_packaging.py builds
        assert args[0] in ('install', 'wheel')
        known = ('-e', '.', '-w', 'dist', f'dist/mmvanilla-{__version__}-py3-none-any.whl')
        for arg in args[1:]:
            if arg.split('[')[0] not in known and not arg.startswith(('--', '-f', 'https://')):
                Requirement(arg)
    elif program == 'mim':  # test_foreign_project.py runs what mim runs
        action, package, name, *_ = args
        if package == 'mmdet':
            assert action in ('train', 'test') and name == 'my_config.py'
        elif action == 'run':
            assert len(list((ROOT / 'tools').rglob(f'{name}.py'))) == 1
        else:
            assert action in ('train', 'test')
            assert name == 'my_config.py' or len(list((ROOT / 'configs').rglob(name))) == 1
        for config in (arg[len('mmvanilla::') :] for arg in args if arg.startswith('mmvanilla::')):
            assert (ROOT / 'configs' / config).exists()
    elif program == 'source':
        assert args == ['.venv/bin/activate']
    elif program == 'pre-commit':
        assert args == ['install'] and (ROOT / '.pre-commit-config.yaml').exists()
    else:
        assert program in ('python', 'bash')
        for path in (arg for arg in args if '/' in arg):
            assert (ROOT / path).exists() or path.startswith(MADE)
        options = [arg for arg in args if arg.startswith('--')]
        if options:
            with pytest.raises(SystemExit):
                run_tool(args[0], '--help')
            usage = capsys.readouterr().out
            assert all(option in usage for option in options)


def test_ci_runs_the_test_command():
    assert 'make test' in (ROOT / '.ci/run').read_text()
