import pytest
from conftest import run_python

BUILD = """
from {package} import MODELS
model = MODELS.build(dict(type='mmvanilla.VanillaNet', arch='5', widen_factor=1 / 64))
print(type(model).__module__)
"""
BUILD_PLAIN = """
from mmengine.config import Config
from mmengine.registry import DefaultScope
Config.fromfile('{config}')  # mmengine does the custom imports when it reads a config
from {package} import MODELS
DefaultScope.get_instance('test', scope_name='{scope}')
model = MODELS.build(dict(type='VanillaNet', arch='5', widen_factor=1 / 64))
from mmengine.registry import HOOKS
HOOKS.build(dict(type='DeepTrainingHook'))
print(type(model).__module__)
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


@pytest.mark.parametrize('scope', PACKAGES)
def test_plain_name_with_custom_imports(scope, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text("custom_imports = dict(imports=['mmvanilla'])\n")
    code = BUILD_PLAIN.format(package=PACKAGES[scope], scope=scope, config=config)
    assert run_python('-c', code).strip().endswith('mmvanilla.models.vanillanet')
