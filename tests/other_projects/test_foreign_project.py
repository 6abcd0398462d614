"""A user's project, as in docs/mmdetection_project.md, with mmvanilla from its wheel."""

import re
import shutil
import zipfile
from pathlib import Path

import mmdet
import pytest
from helpers.narrow_detector import CLASSES, narrow_options
from helpers.programs import ROOT, build_wheel, run_python

PAGE = (ROOT / 'docs/mmdetection_project.md').read_text()
PYTHON = re.findall(r'```python\n(.*?)```', PAGE, re.S)
# mim train mmdet CONFIG and mim test mmdet CONFIG run these.
TOOLS = Path(mmdet.__file__).parent / '.mim/tools'
PACKAGE = f"""
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS

@DATASETS.register_module()
class MyDigits(CocoDataset):
    METAINFO = dict(classes='{CLASSES}'.split(','))
"""
OWN_LINES = """
custom_imports = dict(imports=['my_package'])
train_dataloader = dict(dataset=dict(type='MyDigits'))
val_dataloader = dict(dataset=dict(type='MyDigits'))
test_dataloader = val_dataloader
custom_hooks = [dict(type='mmvanilla.DeepTrainingHook', decay_epochs=1)]
"""


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp('project')
    zipfile.ZipFile(build_wheel(folder / 'build')).extractall(folder / 'installed')
    (folder / 'my_package.py').write_text(PACKAGE)
    (config,) = [code for code in PYTHON if code.startswith('_base_')]
    (optimizer,) = [code for code in PYTHON if code.startswith('optim_wrapper')]
    (folder / 'my_config.py').write_text(config + optimizer + OWN_LINES)
    return folder


def run(project, *args):
    return run_python(
        *args, cwd=project, PYTHONPATH=f'{project / "installed"}:{project}', timeout=300
    )


def test_trains_evaluates_and_predicts(project, digits):
    skipped = ('init_cfg', 'metainfo', 'pipeline', 'custom_hooks', 'max_epochs')
    options = [o for o in narrow_options(digits)[1:] if not any(word in o for word in skipped)]
    options += ['train_cfg.max_epochs=2', 'optim_wrapper.optimizer.lr=0.001']
    options += [
        f'{n}_dataloader.dataset.pipeline.{i}.scale=(128,128)'
        for n, i in (('train', 2), ('test', 1))
    ]
    run(project, TOOLS / 'train.py', 'my_config.py', '--cfg-options', *options)
    work_dir = project / 'work_dirs/my_config'
    fused = work_dir / 'epoch_2_deploy.pth'
    assert fused.exists()
    output = run(
        project,
        TOOLS / 'test.py',
        'my_config.py',
        work_dir / 'epoch_2.pth',
        '--cfg-options',
        *options,
    )
    assert 'coco/bbox_mAP' in output

    (snippet,) = [code for code in PYTHON if code.startswith('from mmdet.apis')]
    fused.rename(work_dir / 'epoch_12_deploy.pth')
    shutil.copy(next((digits / 'val2017').iterdir()), project / 'photo.jpg')
    code = f'{snippet}\nprint(mmvanilla.__file__)'
    assert str(project / 'installed') in run(project, '-W', 'ignore', '-c', code)
    assert (project / 'outputs/vis/photo.jpg').exists()
