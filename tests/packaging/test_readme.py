"""Every command and snippet in the README, and every command in the other pages."""

import re
import shutil
import subprocess

import pytest
from helpers.programs import ROOT, run_python
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmvanilla import SeriesActivation
from mmvanilla.models import DeepConv

BLOCK = re.compile(r'```(\w*)\n(.*?)```', re.S)
BLOCKS = BLOCK.findall((ROOT / 'README.md').read_text())
PYTHON = [code for language, code in BLOCKS if language == 'python']
OTHERS = [
    found
    for path in [*(ROOT / 'configs').rglob('README.md'), *(ROOT / 'docs').glob('*.md')]
    for found in BLOCK.findall(path.read_text())
]
COMMANDS = sorted(
    {
        line
        for language, code in BLOCKS + OTHERS
        if language == 'bash'
        for line in code.strip().splitlines()
    }
)


def test_snippet_prints_what_it_says():
    (snippet,) = [code for code in PYTHON if code.startswith('import torch')]
    printed = next(code for language, code in BLOCKS if language == '')
    assert run_python('-c', snippet).strip() == printed.strip()
    assert len(snippet.strip().splitlines()) <= 10


def test_mmpretrain_snippet(imagenet, tmp_path):
    (snippet,) = [code for code in PYTHON if code.startswith('import mmpretrain')]
    shutil.copy(next(imagenet.glob('val/*/*.JPEG')), tmp_path / 'photo.jpg')
    output = run_python('-W', 'ignore', '-c', snippet, cwd=tmp_path).splitlines()
    assert str([f'vanillanet-{depth}_in1k' for depth in (10, 11, 12, 13)]) in output
    assert 0 < float(output[-1].split()[-1]) < 1  # class and score


def test_config_snippets_build(tmp_path):
    """All of them together, over the main config."""
    snippets = [code for code in PYTHON if not code.startswith('import')]
    assert len(snippets) == 4
    base = f"_base_ = '{ROOT}/configs/retinanet_vanillanet13.py'\n"
    for i, snippet in enumerate(snippets):
        (tmp_path / f'{i}.py').write_text(base + snippet)
    model, hook, optimizer, techniques = (Config.fromfile(tmp_path / f'{i}.py') for i in range(4))
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert MODELS.build(model.model).backbone.out_channels == (1024, 2048, 4096)
        assert_has_both(MODELS.build(techniques.model.backbone), 53, 49)
    assert hook.custom_hooks[0].decay_epochs == 100
    assert optimizer.optim_wrapper.paramwise_cfg.blocks_per_layer == 2


def assert_has_both(network, convs, activations):
    modules = list(network.modules())
    assert sum(isinstance(module, DeepConv) for module in modules) == convs
    assert sum(isinstance(module, SeriesActivation) for module in modules) == activations


def test_techniques_snippets(tmp_path):
    """Those of docs/reproduction.md: in Python, and in a config."""
    page = (ROOT / 'docs/reproduction.md').read_text()
    in_python, in_config = (code for language, code in BLOCK.findall(page) if language == 'python')
    found = {}
    exec(in_python, found)
    assert_has_both(found['model'], 8, 8)
    base = f"_base_ = '{ROOT}/configs/ablations/resnet-50_neither_8xb32_in1k.py'\n"
    (tmp_path / 'a.py').write_text(base + in_config)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        assert_has_both(MODELS.build(Config.fromfile(tmp_path / 'a.py').model.backbone), 53, 49)


@pytest.mark.parametrize('command', COMMANDS)
def test_command(command, run_tool, capsys):
    """Make targets exist; tools know the options; files are where the command looks for them."""
    program, *args = command.split()
    if program == 'make':
        subprocess.run(['make', '-n', *args], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    elif program == 'pip':
        assert args == ['install', '-e', '.'] and (ROOT / 'setup.py').exists()
    elif program == 'mim':  # what it runs is run by test_foreign_project.py
        assert args[:3] in (['train', 'mmdet', 'my_config.py'], ['test', 'mmdet', 'my_config.py'])
    else:
        assert program in ('python', 'bash')
        for path in (arg for arg in args if '/' in arg):
            assert (ROOT / path).exists() or path.startswith(('checkpoints/', 'work_dirs/'))
        options = [arg for arg in args if arg.startswith('--')]
        if options:
            with pytest.raises(SystemExit):
                run_tool(args[0], '--help')
            usage = capsys.readouterr().out
            assert all(option in usage for option in options)


def test_ci_runs_the_test_command():
    assert 'make test' in (ROOT / '.ci/run').read_text()
