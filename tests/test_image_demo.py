"""tools/image_demo.py, and mmdet's inferencer, on fused checkpoints."""

import json
import shutil

import cv2
import numpy as np
import pytest
from conftest import ROOT
from mmdet.apis import DetInferencer
from test_tools import fail

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


def test_errors(trained, photo, monkeypatch, tmp_path):
    message = fail('image_demo', trained / 'epoch_3_deploy.pth', 'no.jpg', monkeypatch=monkeypatch)
    assert 'image no.jpg does not exist' in message
    fixture = ROOT / 'tests/data/vanillanet_6_w8_n3.pt'
    assert '--config' in fail('image_demo', fixture, photo, monkeypatch=monkeypatch)
