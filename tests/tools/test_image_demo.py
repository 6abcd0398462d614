"""tools/image_demo.py, and mmdet's inferencer, on fused checkpoints."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from helpers.config_options import read_config
from helpers.narrow_detector import CONFIG, narrow_options
from helpers.programs import ROOT, fail
from mmdet.apis import DetInferencer
from mmengine.config import Config

from mmvanilla.cli.config_in_checkpoint import config_in_checkpoint
from mmvanilla.config import nested_dicts

TOOL = 'tools/image_demo.py'


@pytest.fixture
def photo(digits, tmp_path):
    return shutil.copy(next((digits / 'val2017').iterdir()), tmp_path / 'photo.jpg')


def test_draws_what_the_inferencer_finds(trained, photo, run_tool, capsys, tmp_path):
    checkpoint = trained / 'epoch_3_deploy.pth'
    out = tmp_path / 'out'
    run_tool(TOOL, checkpoint, photo, '--out-dir', out, '--score-thr', '0.0')
    assert f'{out}/vis/photo.jpg' in capsys.readouterr().out
    assert cv2.imread(str(out / 'vis/photo.jpg')).shape == (256, 256, 3)
    found = json.loads((out / 'preds/photo.json').read_text())
    inferencer = DetInferencer(weights=str(checkpoint), device='cpu', show_progress=False)
    (expected,) = inferencer(str(photo))['predictions']
    assert found['labels'] == expected['labels'] and len(found['labels']) > 0
    np.testing.assert_allclose(found['bboxes'], expected['bboxes'], atol=1e-3)


def test_fused_weights_with_the_training_config(trained, photo, digits, run_tool, capsys, tmp_path):
    config = tmp_path / 'config.py'
    read_config(ROOT / CONFIG, narrow_options(digits)[1:]).dump(config)
    for name in ('epoch_3.pth', 'epoch_3_deploy.pth'):
        args = ['--config', config, '--out-dir', tmp_path / name, '--score-thr', '0.0']
        run_tool(TOOL, trained / name, photo, *args)
    found = [
        json.loads((tmp_path / name / 'preds/photo.json').read_text())
        for name in ('epoch_3.pth', 'epoch_3_deploy.pth')
    ]
    np.testing.assert_allclose(found[1]['scores'], found[0]['scores'], atol=1e-4)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['deploy.pth', 'no.jpg'], 'no.jpg is not an image file'),
        (['deploy.pth', 'deploy.pth'], 'deploy.pth is not an image file'),
        (['deploy.pth', 'photo.jpg', 'photo.jpg'], 'two images are called photo, so'),
        (['deploy.pth', 'photo.jpg', '--device', 'cuda:0'], '--device cuda:0 needs a GPU'),
        (['bare.pth', 'photo.jpg'], 'bare.pth holds no config: give one with --config'),
        (['code.pth', 'photo.jpg'], 'code.pth is not a model in plain values'),
        (
            [
                'deploy.pth',
                'photo.jpg',
                '--config',
                f'{ROOT}/configs/digits/vanillanet-6_digits.py',
            ],
            'is not for a detector',
        ),
        (
            [
                *('deploy.pth', 'photo.jpg', '--config'),
                f'{ROOT}/configs/digits/mask_rcnn_vanillanet-6_digits.py',
            ],
            'its series number is 4',
        ),
    ],
)
def test_errors(args, message, trained, photo, monkeypatch, tmp_path):
    shutil.copy(trained / 'epoch_3_deploy.pth', tmp_path / 'deploy.pth')
    torch.save(dict(state_dict={}), tmp_path / 'bare.pth')
    code = f"model = __import__('pathlib').Path('{tmp_path}/ran').touch()"
    torch.save(dict(meta=dict(cfg=code), state_dict={}), tmp_path / 'code.pth')
    args = [tmp_path / arg if arg.endswith(('.pth', '.jpg')) else arg for arg in args]
    args += ['--out-dir', tmp_path / 'outputs']
    assert message in fail('image_demo', *args, monkeypatch=monkeypatch)
    assert not (tmp_path / 'ran').exists()
    assert not (tmp_path / 'outputs').exists()


@pytest.mark.parametrize(
    'name',
    ['retinanet_vanillanet13', 'coco/mask_rcnn_swin-t_coco', 'digits/vanillanet-6_digits'],
)
def test_config_in_checkpoint(name):
    """Read as plain values, a config has the same model as when run, but no training settings."""
    cfg = Config.fromfile(ROOT / f'configs/{name}.py')
    read = config_in_checkpoint(dict(meta=dict(cfg=cfg.pretty_text)), 'a.pth')
    expected = Config.fromstring(cfg.pretty_text, file_format='.py').model.to_dict()
    if 'train_cfg' in expected:
        expected['train_cfg'] = None
    for part in nested_dicts(expected):
        part.pop('init_cfg', None)
    assert read.model.to_dict() == expected
