"""mmpretrain's entry points know our models, offline, once mmvanilla is imported."""

import importlib
import re

import pytest
from helpers.networks import ARCHS
from helpers.pairs import zip_equal
from helpers.programs import ROOT, run_python
from mmengine.fileio import load

import mmvanilla  # noqa: F401  adds our models to mmpretrain's list
from mmvanilla.compatibility import meta_device

NAMES = [f'vanillanet-{arch}_in1k' for arch in ARCHS]
# Top-1 and ReaL accuracy, Table 4 of the paper.
ACCURACY = [
    *((72.49, 79.66), (76.36, 82.86), (77.98, 84.16), (79.13, 85.14), (79.87, 85.66)),
    *((80.57, 86.25), (81.08, 86.54), (81.55, 86.81), (82.05, 87.15)),
    *((82.53, 87.48), (83.11, 87.85)),
]
METAFILE = load(ROOT / 'configs/imagenet/metafile.yml')
IMPORTS = {
    'theirs first': 'import mmpretrain, mmvanilla',
    'ours first': 'import mmvanilla\nimport mmpretrain',
}


@pytest.mark.parametrize('order', IMPORTS)
def test_list_models(order):
    code = f"{IMPORTS[order]}\nprint(*mmpretrain.list_models('*vanillanet*'))"
    assert run_python('-W', 'ignore', '-c', code).split() == sorted(NAMES)


def test_every_name_builds():
    import mmpretrain

    for name, arch in zip(NAMES, ARCHS):
        with meta_device():
            model = mmpretrain.get_model(name)
        assert model._config.model.backbone.arch == arch
        assert model._dataset_meta['classes'][0].startswith('tench')


def test_metafile_has_the_papers_figures():
    assert [model['Name'] for model in METAFILE['Models']] == NAMES
    for model, arch, (top1, real) in zip_equal(METAFILE['Models'], ARCHS, ACCURACY):
        metrics = model['Results'][0]['Metrics']
        assert metrics == {'Top 1 Accuracy': top1, 'ReaL Top 1 Accuracy': real}
        assert (ROOT / model['Config']).exists()
        assert model['Metadata']['Depth'] == int(arch.split('-')[0])
        suffix = arch.replace('-x1.5', '_x1_5').replace('-ada', '_ada_pool')
        assert model['Weights'].endswith(
            f'/VanillaNet/releases/download/ckpt/vanillanet_{suffix}.pth'
        )


def test_once():
    """mmvanilla can be reloaded, as in notebooks, although mmpretrain takes each name only once."""
    importlib.reload(mmvanilla)


def test_bare_package(tmp_path, monkeypatch):
    """Without model-index.yml, mmpretrain's list does not change."""
    import mmpretrain.apis.model as module

    from mmvanilla import model_index

    monkeypatch.setattr(model_index, 'find_root', lambda: tmp_path)
    before = set(module.ModelHub._models_dict)
    monkeypatch.setattr(module, '_has_mmvanilla', False)
    model_index.register_models(module)
    assert set(module.ModelHub._models_dict) == before


@pytest.mark.parametrize(
    'imports',
    [
        'import mmvanilla.model_index as index\n'
        'index.find_root = lambda: 1 / 0\n'
        'import mmpretrain\n',
        'import mmpretrain\n'
        'from mmpretrain.apis.model import ModelHub\n'
        'register = ModelHub.register_model_index\n'
        'ModelHub.register_model_index = lambda *args, **kwargs: 1 / 0\n'
        'import mmvanilla\n'
        'ModelHub.register_model_index = register\n',
    ],
    ids=['mmvanilla first', 'mmpretrain first'],
)
def test_an_error_of_ours_breaks_no_import(imports):
    code = f"{imports}print(len(mmpretrain.list_models('*vanillanet*')), 'models')"
    output = run_python('-W', 'always', '-c', code)
    assert re.search('^0 models$', output, re.M)
    assert 'mmpretrain does not list the models of mmvanilla: division by zero' in output
