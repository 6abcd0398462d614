import pytest
from helpers.programs import run_python

BUILD = """
from {package} import MODELS
model = MODELS.build(dict(type='mmvanilla.VanillaNet', arch='5', widen_factor=1 / 64))
print(type(model).__module__)
"""
BUILD_PLAIN = """
from importlib import import_module
from mmengine.config import Config
from mmengine.registry import HOOKS, DefaultScope
Config.fromfile('{config}')  # mmengine does the custom imports when it reads a config
for scope in {scopes}:
    MODELS = import_module(f'{{scope}}.registry').MODELS
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(dict(type='VanillaNet', arch='5', widen_factor=1 / 64))
        head = MODELS.build(dict(type='VanillaNetClsHead', num_classes=2, in_channels=64))
        hook = HOOKS.build(dict(type='DeepTrainingHook'))
        print(scope, *(type(each).__name__ for each in (model, head, hook)))
"""
PACKAGES = {
    'mmdet': 'mmdet.registry',
    'mmpretrain': 'mmpretrain.registry',
    'mmengine': 'mmengine.registry',
}


@pytest.mark.parametrize('scope', PACKAGES)
def test_scoped_name_needs_no_import(scope):
    output = run_python('-c', BUILD.format(package=PACKAGES[scope]))
    assert output.strip().endswith('mmvanilla.models.vanillanet')


def test_plain_names_with_custom_imports(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text("custom_imports = dict(imports=['mmvanilla'])\n")
    output = run_python('-c', BUILD_PLAIN.format(scopes=list(PACKAGES), config=config))
    for scope in PACKAGES:
        assert f'{scope} VanillaNet VanillaNetClsHead DeepTrainingHook' in output


RELOAD = """
import importlib, sys, warnings
import mmvanilla
from mmengine.registry import HOOKS, MODELS
if {pretrain}:
    import mmpretrain
warnings.simplefilter('error')
for _ in range(2):
    for name in [name for name in sys.modules if name.split('.')[0] == 'mmvanilla']:
        importlib.reload(sys.modules[name])
warnings.simplefilter('ignore')
import mmpretrain
model = MODELS.build(dict(type='mmvanilla.VanillaNet', arch='5', widen_factor=1 / 64))
head = MODELS.build(dict(type='mmvanilla.VanillaNetClsHead', num_classes=2, in_channels=64))
hook = HOOKS.build(dict(type='mmvanilla.DeepTrainingHook'))
names = [type(each).__name__ for each in (model, head, hook)]
print(*names, len(mmpretrain.list_models('vanillanet-5*')))
"""


@pytest.mark.parametrize('pretrain', [False, True])
def test_notebooks_reload_modules(pretrain):
    """IPython's autoreload imports changed modules again; registering them again must work."""
    output = run_python('-c', RELOAD.format(pretrain=pretrain))
    assert output.splitlines()[-1] == 'VanillaNet VanillaNetClsHead DeepTrainingHook 1'


def test_names_of_others_stay():
    """A user's class that has one of our names is not replaced silently."""
    code = """
from mmengine.registry import MODELS
@MODELS.register_module()
class VanillaNet: pass
import mmvanilla
"""
    assert 'VanillaNet is already registered' in run_python('-c', code, check=False).stdout
