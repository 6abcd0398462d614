"""tools/deploy.py on a trained detector and on a classifier, and its ONNX files in onnxruntime."""

import shutil
from importlib.util import find_spec

import onnx_export
import onnxruntime
import pytest
import torch
from helpers.config_options import read_config
from helpers.narrow_detector import CONFIG, narrow_options
from helpers.networks import randomize, relative_error
from helpers.pairs import zip_equal
from helpers.programs import ROOT, fail
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmvanilla.checkpoint import load_checkpoint

TOOL = 'tools/deploy.py'
NARROW_CLASSIFIER = [
    'model.backbone.widen_factor=0.015625',
    'model.head.in_channels=64',
    'model.head.num_classes=7',
]
CLASSIFIER = 'configs/imagenet/vanillanet-6_8xb128_in1k.py'


def check_onnx(path, network):
    """Asserts that onnxruntime computes what torch does, at three sizes and two batch sizes."""
    session = onnxruntime.InferenceSession(str(path))
    for batch in (1, 3):
        for size in ((64, 64), (96, 160), (141, 75)):
            images = torch.randn(batch, 3, *size)
            with torch.no_grad():
                expected = network(images, mode='tensor')
            if isinstance(expected, torch.Tensor):
                named = {'logits': expected}
            else:
                kinds = zip_equal(('cls_score', 'bbox_pred'), expected)
                named = {f'{kind}_{i}': x for kind, xs in kinds for i, x in enumerate(xs)}
            assert [output.name for output in session.get_outputs()] == list(named)
            for name, got in zip(named, session.run(None, {'images': images.numpy()})):
                assert got.shape == named[name].shape
                assert relative_error(torch.from_numpy(got), named[name]) < 1e-4, (name, size)


def test_detector(trained, digits, run_tool, capsys, tmp_path):
    out = tmp_path / 'out'
    options = narrow_options(digits)
    run_tool(TOOL, CONFIG, trained / 'epoch_3.pth', out, '--onnx', *options)
    printed = capsys.readouterr().out
    stem = out / 'retinanet_vanillanet13'
    assert {path.name for path in out.iterdir()} == {
        stem.name + s for s in ('.pth', '.py', '.onnx')
    }
    assert all(f'{stem}{suffix}' in printed for suffix in ('.pth', '.py', '.onnx'))

    checkpoint = load_checkpoint(f'{stem}.pth')
    assert checkpoint['meta']['form'] == 'deploy'
    assert len(checkpoint['meta']['dataset_meta']['classes']) == 10
    expected = load_checkpoint(trained / 'epoch_3_deploy.pth')['state_dict']
    torch.testing.assert_close(checkpoint['state_dict'], expected, rtol=0, atol=0)

    cfg = read_config(ROOT / CONFIG, options[1:])
    init_default_scope('mmdet')
    network = MODELS.build(cfg.model)
    network.load_state_dict(load_checkpoint(trained / 'epoch_3.pth')['state_dict'])
    check_onnx(f'{stem}.onnx', network.eval())


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


def test_classifier(run_tool, tmp_path):
    cfg = read_config(ROOT / CLASSIFIER, NARROW_CLASSIFIER)
    init_default_scope('mmpretrain')
    network = randomize(MODELS.build(cfg.model)).eval()
    torch.save(network.state_dict(), tmp_path / 'weights.pth')
    options = ['--cfg-options', *NARROW_CLASSIFIER]
    run_tool(TOOL, CLASSIFIER, tmp_path / 'weights.pth', tmp_path / 'out', '--onnx', *options)
    check_onnx(next((tmp_path / 'out').glob('*.onnx')), network)


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


class SizeBakedIn(nn.Module):
    """Multiplies by a number that a tracer takes for a constant."""

    def forward(self, images, mode):
        return images.flatten(1).mean(1, keepdim=True) * float(images.shape[-1])


class NotANumber(nn.Module):
    """Returns two outputs; the second is NaN."""

    def forward(self, images, mode):
        return [[images, images.sqrt() / 0 - images.sqrt() / 0]]


@pytest.mark.parametrize('network', [SizeBakedIn(), NotANumber()])
def test_file_that_gives_something_else_is_not_kept(network, tmp_path):
    with pytest.raises(RuntimeError, match='a.onnx is not written'):
        onnx_export.export_onnx(network, tmp_path / 'a.onnx')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ([CONFIG, 'epoch_2.pth', 'out'], 'λ = 0.5'),
        ([CONFIG, 'epoch_9.pth', 'out'], 'epoch_9.pth does not exist'),
        ([CONFIG, 'epoch_3.pth', 'file'], 'file is a file: name a folder'),
        ([CONFIG, 'retinanet_vanillanet13.pth', '.'], 'retinanet_vanillanet13.pth would be over'),
        (
            ['configs/mask_rcnn_vanillanet13.py', 'epoch_3.pth', 'out', '--onnx'],
            'this is a MaskRCNN: leave --onnx out',
        ),
        (
            ['configs/imagenet/vanillanet-13-x1.5-ada_8xb128_in1k.py', 'a.pth', 'out', '--onnx'],
            'blocks.1.pool pools to a fixed size',
        ),
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


def test_no_onnx(trained, digits, monkeypatch, tmp_path):
    monkeypatch.setattr(
        onnx_export, 'find_spec', lambda name: None if name == 'onnxruntime' else find_spec(name)
    )
    args = [CONFIG, trained / 'epoch_3.pth', tmp_path / 'out', '--onnx', *narrow_options(digits)]
    message = fail('deploy', *args, monkeypatch=monkeypatch)
    assert '--onnx needs onnxruntime: pip install onnx onnxruntime' in message
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('channels', [1, 4])
def test_onnx_of_other_channels(channels, run_tool, tmp_path):
    options = [*NARROW_CLASSIFIER, f'model.backbone.in_channels={channels}']
    cfg = read_config(ROOT / CLASSIFIER, options)
    init_default_scope('mmpretrain')
    network = randomize(MODELS.build(cfg.model))
    torch.save(dict(state_dict=network.state_dict()), tmp_path / 'a.pth')
    run_tool(
        TOOL, CLASSIFIER, tmp_path / 'a.pth', tmp_path / 'out', '--onnx', '--cfg-options', *options
    )
    (path,) = (tmp_path / 'out').glob('*.onnx')
    session = onnxruntime.InferenceSession(str(path))
    images = torch.randn(2, channels, 96, 64)
    (got,) = session.run(None, {'images': images.numpy()})
    assert relative_error(torch.from_numpy(got), network.eval()(images)) < 1e-4


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
