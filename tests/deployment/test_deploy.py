"""tools/deploy.py: fused checkpoints and their configs."""

import shutil

import pytest
import torch
from helpers.config_options import read_config
from helpers.narrow_detector import CONFIG, narrow_options
from helpers.pairs import zip_equal
from helpers.programs import ROOT, fail
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import MODELS, init_default_scope

from mmvanilla.checkpoint import load_checkpoint

TOOL = 'tools/deploy.py'
NARROW_CLASSIFIER = [
    'model.backbone.widen_factor=0.015625',
    'model.head.in_channels=64',
    'model.head.num_classes=7',
]
CLASSIFIER = 'configs/imagenet/vanillanet-6_8xb128_in1k.py'


def test_detector(trained, digits, run_tool, capsys, tmp_path):
    out = tmp_path / 'out'
    run_tool(TOOL, CONFIG, trained / 'epoch_3.pth', out, *narrow_options(digits))
    printed = capsys.readouterr().out
    stem = out / 'retinanet_vanillanet13'
    assert {path.name for path in out.iterdir()} == {stem.name + s for s in ('.pth', '.py')}
    assert all(f'{stem}{suffix}' in printed for suffix in ('.pth', '.py'))

    checkpoint = load_checkpoint(f'{stem}.pth')
    assert checkpoint['meta']['form'] == 'deploy'
    assert len(checkpoint['meta']['dataset_meta']['classes']) == 10
    expected = load_checkpoint(trained / 'epoch_3_deploy.pth')['state_dict']
    torch.testing.assert_close(checkpoint['state_dict'], expected, rtol=0, atol=0)


def test_files_are_all_that_inference_needs(trained, digits, run_tool, tmp_path):
    """tools/test.py finds with them what the trained network finds; tools/image_demo.py runs."""
    run_tool(TOOL, CONFIG, trained / 'epoch_3.pth', tmp_path, *narrow_options(digits))
    config, checkpoint = (
        tmp_path / 'retinanet_vanillanet13.py',
        tmp_path / 'retinanet_vanillanet13.pth',
    )
    for name, args in (
        ('fused', [config, checkpoint]),
        ('trained', [CONFIG, trained / 'epoch_3.pth', *narrow_options(digits)]),
    ):
        run_tool(
            'tools/test.py', *args, '--work-dir', tmp_path / name, '--out', tmp_path / f'{name}.pkl'
        )
    fused, expected = (
        [sample['pred_instances'] for sample in load(tmp_path / f'{name}.pkl')]
        for name in ('fused', 'trained')
    )
    for got, wanted in zip_equal(fused, expected):
        torch.testing.assert_close(got['scores'], wanted['scores'], rtol=1e-3, atol=1e-4)
    photo = shutil.copy(next((digits / 'val2017').iterdir()), tmp_path / 'photo.jpg')
    run_tool('tools/image_demo.py', checkpoint, photo, '--out-dir', tmp_path / 'drawn')
    assert (tmp_path / 'drawn/vis/photo.jpg').exists()


@pytest.mark.parametrize(
    ('meta', 'expected'),
    [
        (dict(CLASSES=('a', 'b')), dict(classes=('a', 'b'))),  # of mmdet 2.x
        (dict(dataset_meta=dict(classes=('a',))), dict(classes=('a',))),
        ({}, None),
    ],
)
def test_classes_that_the_checkpoint_names(meta, expected, run_tool, tmp_path):
    init_default_scope('mmpretrain')
    network = MODELS.build(read_config(ROOT / CLASSIFIER, NARROW_CLASSIFIER).model)
    torch.save(dict(meta=meta, state_dict=network.state_dict()), tmp_path / 'a.pth')
    options = ['--cfg-options', *NARROW_CLASSIFIER]
    run_tool(TOOL, CLASSIFIER, tmp_path / 'a.pth', tmp_path, *options)
    (file,) = tmp_path.glob('vanillanet*.pth')
    found = load_checkpoint(file)['meta']
    assert found.get('dataset_meta') == expected
    assert ('dataset_meta' in found) == (expected is not None)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ([CONFIG, 'epoch_2.pth', 'out'], 'λ = 0.5'),
        ([CONFIG, 'epoch_9.pth', 'out'], 'epoch_9.pth does not exist'),
        ([CONFIG, 'epoch_3.pth', 'file'], 'file is a file: name a folder'),
        ([CONFIG, 'retinanet_vanillanet13.pth', '.'], 'retinanet_vanillanet13.pth would be over'),
    ],
)
def test_errors(args, message, trained, digits, monkeypatch, tmp_path):
    (tmp_path / 'file').touch()
    for name in ('epoch_2.pth', 'epoch_3.pth'):
        (tmp_path / name).symlink_to(trained / name)
    torch.save({}, tmp_path / 'a.pth')
    shutil.copy(trained / 'epoch_3.pth', tmp_path / 'retinanet_vanillanet13.pth')
    before = sorted(tmp_path.iterdir())
    config, checkpoint, out, *options = args
    options += narrow_options(digits) if config == CONFIG else []
    args = [config, tmp_path / checkpoint, tmp_path / out, *options]
    assert message in fail('deploy', *args, monkeypatch=monkeypatch)
    assert sorted(tmp_path.iterdir()) == before


def test_its_config_is_only_for_inference(run_tool, tmp_path, monkeypatch):
    """It has the training config's name, but neither its work dir nor what training needs."""
    cfg = read_config(ROOT / CLASSIFIER, NARROW_CLASSIFIER)
    init_default_scope('mmpretrain')
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / 'a.pth')
    args = (CLASSIFIER, tmp_path / 'a.pth', tmp_path / 'out', '--cfg-options', *NARROW_CLASSIFIER)
    run_tool(TOOL, *args)
    (config,) = (tmp_path / 'out').glob('*.py')
    assert Config.fromfile(config).work_dir == str(tmp_path / 'out/test')
    assert 'is only for inference' in fail('train', config, monkeypatch=monkeypatch)
