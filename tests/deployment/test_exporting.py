"""Networks as ONNX, OpenVINO, TorchScript and torch.export files: what they give, and errors."""

import argparse
import copy
import json
import re
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
import torch
from helpers.config_options import loader_options, read_config
from helpers.narrow_detector import CONFIG, narrow_options
from helpers.networks import randomize
from helpers.pairs import zip_equal
from helpers.programs import ROOT, fail, run_python
from mmengine.fileio import load
from mmengine.registry import MODELS, init_default_scope

for package in ('mmdeploy', 'onnxruntime', 'openvino', 'nncf'):
    pytest.importorskip(package)

from mmvanilla.checkpoint import load_checkpoint  # noqa: E402
from mmvanilla.cli.exports import Exports  # noqa: E402
from mmvanilla.cli.measuring import METRICS  # noqa: E402
from mmvanilla.deployment import agreement, exporting  # noqa: E402
from mmvanilla.deployment.exported_network import load_exported, read_description  # noqa: E402
from mmvanilla.deployment.fused_checkpoint import inference_config  # noqa: E402
from mmvanilla.errors import UsageError  # noqa: E402

TOOL = 'tools/deploy.py'
STEM = 'retinanet_vanillanet13'
ALL = ['--onnx', '--openvino', '--int8', '--torchscript', '--torch-export', '--normalize']
# Only in a process of its own: when the garbage collector frees networks of OpenVINO, they let
# other threads run, such as those of data loaders in other tests, and the process crashes.
OPENVINO = pytest.mark.openvino
XML = ('.xml', '_int8.xml')
INT8 = ['--calibration-images', '3', '--tolerance', '1']


@pytest.fixture(scope='module')
def checkpoint(trained, tmp_path_factory):
    """The narrow detector with scores that differ by more than rounding."""
    content = load_checkpoint(trained / 'epoch_3.pth')
    weights = dict(content['state_dict'])
    name = 'bbox_head.retina_cls'
    noise = torch.randn(weights[f'{name}.weight'].shape, generator=torch.Generator().manual_seed(0))
    weights[f'{name}.weight'] = weights[f'{name}.weight'] + noise / 2
    weights[f'{name}.bias'] = weights[f'{name}.bias'] + 3
    path = tmp_path_factory.mktemp('spread') / 'a.pth'
    torch.save(dict(state_dict=weights), path)
    return path


@pytest.fixture(scope='module')
def exported(checkpoint, digits, tmp_path_factory):
    """The narrow detector in every format, normalizing images itself, and what was printed."""
    out = tmp_path_factory.mktemp('exported')
    command = [TOOL, CONFIG, checkpoint, out, *ALL, *INT8]
    return out, run_python(*command, *narrow_options(digits))


def test_every_format(exported):
    out, printed = exported
    suffixes = ('.pth', '.py', '.onnx', '.xml', '.bin', '_int8.xml', '_int8.bin', '.pt', '.pt2')
    assert {path.name for path in out.iterdir()} == {STEM + suffix for suffix in suffixes}
    assert printed.count('boxes agree with torch, on 4 images, in a batch and at another size') == 3
    assert 'int8 on the test data: coco/bbox_mAP 0.' in printed
    assert 'maps within' in printed


@pytest.mark.parametrize('suffix', ['.onnx', *(pytest.param(x, marks=OPENVINO) for x in XML)])
def test_what_a_file_says_of_itself(suffix, exported):
    about, outputs = read_description(exported[0] / f'{STEM}{suffix}')
    assert outputs == ['dets', 'labels']
    assert about['classes'][:2] == ['zero', 'one'] and len(about['classes']) == 10
    assert about['mean'] == pytest.approx([123.675, 116.28, 103.53])
    assert about['std'] == pytest.approx([58.395, 57.12, 57.375])
    assert about['channel_order'] == 'RGB' and about['normalized_inside']
    assert about['pad_size_divisor'] == 32 and about['cuts_boxes']
    assert [step['type'] for step in about['pipeline']][:2] == ['LoadImageFromFile', 'Resize']
    assert 'VanillaNet' in about['config']


def evaluate(run_tool, path, digits, folder):
    out = folder / 'found.pkl'
    args = ['--work-dir', folder, '--out', out, *narrow_options(digits)]
    run_tool('tools/test.py', CONFIG, path, *args)
    return [each['pred_instances'] for each in load(out)]


@OPENVINO
def test_evaluation(exported, checkpoint, digits, run_tool, tmp_path):
    """What tools/test.py finds with the files is what it finds with the fused network."""
    expected = evaluate(run_tool, checkpoint, digits, tmp_path)
    for suffix in ('.onnx', '.xml'):
        found = evaluate(run_tool, exported[0] / f'{STEM}{suffix}', digits, tmp_path)
        for one, other in zip_equal(found, expected):
            assert len(other['scores']) > 10
            torch.testing.assert_close(one['scores'], other['scores'], rtol=1e-3, atol=1e-4)
            assert one['bboxes'].min() >= 0 and one['bboxes'].max() <= 256


@OPENVINO
def test_image_demo(exported, digits, run_tool, capsys, tmp_path):
    """A folder of images, by files that hold all that is needed."""
    for suffix in ('.pth', '.xml'):
        out = tmp_path / suffix
        args = ['--out-dir', out, '--score-thr', '0.0']
        run_tool('tools/image_demo.py', exported[0] / f'{STEM}{suffix}', digits / 'val2017', *args)
        assert len(list((out / 'vis').iterdir())) == 4
    one, other = (sorted((tmp_path / suffix / 'preds').iterdir()) for suffix in ('.pth', '.xml'))
    for path, again in zip_equal(one, other):
        scores = [json.loads(each.read_text())['scores'] for each in (path, again)]
        np.testing.assert_allclose(*scores, atol=1e-3)


@pytest.fixture(scope='module')
def fused(checkpoint, digits):
    """The narrow detector, fused, and its config."""
    cfg = inference_config(read_config(ROOT / CONFIG, narrow_options(digits)[1:]))
    init_default_scope('mmdet')
    network = MODELS.build(copy.deepcopy(cfg.model))
    network.load_state_dict(load_checkpoint(checkpoint)['state_dict'])
    return network.eval(), cfg


def options(**changes):
    values = dict.fromkeys(('onnx', 'openvino', 'int8', 'torchscript', 'torch_export'), False)
    return argparse.Namespace(
        **{**values, 'normalize': False, 'fixed_size': False, 'opset': 17, **changes}
    )


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(onnx=True), 'the .onnx file is not written: only .* boxes agree with torch'),
        pytest.param(
            dict(int8=True, calibration_images=2, tolerance=0.0, force=False),
            r'int8 costs more than --tolerance 0.0 \(coco/bbox_mAP',
            marks=OPENVINO,
        ),
    ],
)
def test_a_file_that_gives_something_else_is_not_kept(changes, message, fused, tmp_path):
    network, cfg = fused
    exports = Exports(network, cfg, options(**changes))
    other = copy.deepcopy(network)
    other.bbox_head.retina_cls.bias.data += torch.linspace(-1, 1, 90)
    exports.exporter.network = other
    before = iter([1.0, 0.5, 0.5, 0.5])
    exports.data.measure = lambda model: {'coco/bbox_mAP': next(before, 0.5)}
    with pytest.raises(UsageError, match=message):
        exports.write(tmp_path / 'network')
    assert list(tmp_path.iterdir()) == []


@OPENVINO
def test_the_programs_of_the_docs(exported, fused, tmp_path):
    """The first needs neither torch nor a config, and prints what torch finds."""
    page = (ROOT / 'docs/deployment.md').read_text()
    program, of_openvino = re.findall(r'```python\n(import json.*?)```', page, re.S)
    assert set(re.findall(r'^import (\w+)', program, re.M)) == {
        *('json', 'sys', 'numpy', 'onnxruntime')
    }
    network, cfg = copy.deepcopy(fused)
    network.bbox_head.retina_cls.bias.data += 3
    exports = Exports(network, cfg, options(onnx=True))
    exports.write(tmp_path / 'network')
    sample = exports.samples[1]
    photo = cv2.imread(sample['data_samples'].img_path)
    np.save(tmp_path / 'photo.npy', photo[..., ::-1])
    printed = run_python('-c', program, tmp_path / 'network.onnx', tmp_path / 'photo.npy')
    (found,) = agreement.predict(network, [sample])
    found = found.pred_instances[found.pred_instances.scores > 0.3]
    lines = printed.splitlines()
    assert len(lines) == len(found) > 5
    for line, score in zip_equal(lines, found.scores):
        name, printed_score, *corners = line.split()
        assert float(printed_score) == pytest.approx(score.item(), abs=0.011)
        assert name in cfg.test_dataloader.dataset.metainfo.classes and len(corners) == 4
    namespace = {'batch': exports.exporter.inputs['inputs'].numpy()}
    path = exported[0] / f'{STEM}.xml'
    exec(of_openvino.replace("'network.xml'", repr(str(path))), namespace)
    assert namespace['about']['classes'][0] == 'zero'
    assert namespace['boxes'].shape[0] == 1 and namespace['labels'].shape[0] == 1


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--onnx', '--opset', '11'], '--opset 11 does not work: choose one from 16, which'),
        (['--int8', '--calibration-images', '0'], '--calibration-images must be at least 1'),
        (['--int8', '--tolerance', '2'], '--tolerance must be from 0 to 1'),
        (['--onnx', 'test_dataloader=None'], 'the config has no test_dataloader'),
        (['--int8', 'test_evaluator=None'], 'the config has no test_evaluator'),
        (['--onnx', 'test_dataloader.dataset.data_root=nowhere'], 'no data at nowhere'),
        (['--onnx', 'model.test_cfg.mode=slide'], 'model.test_cfg.mode=whole'),
        (['--onnx', 'default_scope=mmengine'], 'but this config is for mmengine'),
    ],
)
def test_errors(args, message, trained, digits, monkeypatch, tmp_path):
    """Before anything is loaded: the checkpoint does not exist."""
    changes = [arg for arg in args if '=' in arg]
    args = [arg for arg in args if '=' not in arg]
    args = [CONFIG, 'none.pth', tmp_path / 'out', *args, *narrow_options(digits), *changes]
    assert message in fail('deploy', *args, monkeypatch=monkeypatch)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('option', 'package', 'install'),
    [
        ('--onnx', 'onnxruntime', 'onnxruntime'),
        ('--openvino', 'openvino', 'openvino'),
        ('--int8', 'nncf', 'nncf'),
        ('--torchscript', 'mmdeploy', 'aenum multiprocess; pip install --no-deps mmdeploy'),
    ],
)
def test_missing_packages(option, package, install, digits, monkeypatch, tmp_path):
    monkeypatch.setattr(
        exporting, 'find_spec', lambda name: None if name == package else find_spec(name)
    )
    args = [CONFIG, 'none.pth', tmp_path / 'out', option, *narrow_options(digits)]
    message = fail('deploy', *args, monkeypatch=monkeypatch)
    assert f'{option} needs {package}: pip install {install}.' in message


@pytest.mark.parametrize('tool', ['test', 'image_demo'])
@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('none.onnx', 'none.onnx does not exist'),
        ('broken.onnx', 'broken.onnx cannot be read'),
        pytest.param('broken.xml', 'broken.xml cannot be read', marks=OPENVINO),
        ('lonely.xml', 'lonely.bin does not exist'),
        ('foreign.onnx', 'foreign.onnx was not written by tools/deploy.py'),
    ],
)
def test_files_that_cannot_be_read(tool, name, message, exported, digits, monkeypatch, tmp_path):
    import onnx

    whole = (exported[0] / f'{STEM}.onnx').read_bytes()
    (tmp_path / 'broken.onnx').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'broken.xml').write_text((exported[0] / f'{STEM}.xml').read_text()[:3000])
    (tmp_path / 'broken.bin').write_bytes((exported[0] / f'{STEM}.bin').read_bytes())
    (tmp_path / 'lonely.xml').write_text((exported[0] / f'{STEM}.xml').read_text())
    foreign = onnx.load_from_string(whole)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / 'foreign.onnx')
    config = [CONFIG] if tool == 'test' else []
    more = narrow_options(digits) if tool == 'test' else [next((digits / 'val2017').iterdir())]
    assert message in fail(tool, *config, tmp_path / name, *more, monkeypatch=monkeypatch)


def test_file_of_another_config(exported, digits, monkeypatch):
    config = 'configs/imagenet/vanillanet-5_8xb128_in1k.py'
    path = exported[0] / f'{STEM}.onnx'
    place = ['--cfg-options', f'test_dataloader.dataset.data_root={digits}']
    more = ['test_dataloader.dataset.split=val2017']
    message = fail('test', config, path, *place, *more, monkeypatch=monkeypatch)
    assert 'was exported with other settings (model.type differs)' in message
    changed = [*narrow_options(digits), 'model.test_cfg.score_thr=0.5']
    message = fail('test', CONFIG, path, *changed, monkeypatch=monkeypatch)
    assert '(model.test_cfg.score_thr differs), and they are fixed in it' in message


def test_a_file_of_other_outputs(exported, monkeypatch):
    cfg = read_config(ROOT / 'configs/imagenet/vanillanet-5_8xb128_in1k.py', [])
    with pytest.raises(UsageError, match='gives dets, labels, so it is not of this config'):
        load_exported(exported[0] / f'{STEM}.onnx', cfg)


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('classes', 3),
        ('classes', [1]),
        ('mean', 'abc'),
        ('mean', [1.0, 2.0]),
        ('mean', [float('nan')] * 3),
        ('std', [0.0, 1.0, 1.0]),
        ('normalized_inside', 1),
        ('config', None),
    ],
)
def test_descriptions_of_the_wrong_kind(name, value, exported, tmp_path):
    import onnx

    network = onnx.load(exported[0] / f'{STEM}.onnx')
    for entry in network.metadata_props:
        if entry.key == name:
            entry.value = json.dumps(value)
    onnx.save(network, tmp_path / 'a.onnx')
    with pytest.raises(UsageError, match='was not written by tools/deploy.py'):
        read_description(tmp_path / 'a.onnx')


@torch.no_grad()
def spread_scores(network):
    """Makes scores so different that rounding changes no choice among boxes."""
    gains = {'rpn_cls': 1.0, 'rpn_reg': 0.1, 'fc_cls': 1.0, 'fc_reg': 0.2}
    for name, module in network.named_modules():
        gain = gains.get(name.split('.')[-1])
        if gain:
            module.weight.normal_(0, gain * module.weight[0].numel() ** -0.5)


@OPENVINO
@pytest.mark.parametrize('name', ['faster_rcnn', 'mask_rcnn', 'upernet'])
def test_other_networks(name, digits, run_tool, tmp_path):
    """Masks, two stages, pooling to fixed sizes: the files score what the checkpoint does."""
    config = f'configs/digits/{name}_vanillanet-6_digits.py'
    options = loader_options(f'dataset.data_root={digits}/')
    if name != 'upernet':
        options += [f'test_evaluator.ann_file={digits}/annotations/instances_val2017.json']
    cfg = read_config(ROOT / config, options)
    init_default_scope(cfg.default_scope)
    network = MODELS.build(copy.deepcopy(cfg.model))
    network.init_weights()
    spread_scores(network)
    torch.save(network.state_dict(), tmp_path / 'a.pth')
    formats = ['--onnx', '--openvino', '--torchscript', '--cfg-options', *options]
    run_tool(TOOL, config, tmp_path / 'a.pth', tmp_path / 'out', *formats)
    found = []
    for suffix in ('.pth', '.onnx', '.xml'):
        (path,) = (tmp_path / 'out').glob(f'*{suffix}')
        run_tool(
            'tools/test.py',
            *(config, path, '--work-dir', tmp_path / suffix, '--cfg-options', *options),
        )
        (result,) = (tmp_path / suffix).glob('*/*.json')
        metrics = load(result)
        found.append([v for k, v in metrics.items() if k.split('/')[-1] in METRICS])
    assert found[0] and found[1:] == [pytest.approx(found[0], abs=0.002)] * 2


@OPENVINO
def test_classifier(run_tool, tmp_path):
    run_python('tools/dataset_converters/digits_to_folders.py', tmp_path / 'data')
    config = 'configs/digits/vanillanet-6_digits.py'
    cfg = read_config(ROOT / config, [])
    init_default_scope('mmpretrain')
    network = randomize(MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor)))
    torch.save(network.state_dict(), tmp_path / 'a.pth')
    place = ['--cfg-options', f'test_dataloader.dataset.data_root={tmp_path}/data']
    run_tool(TOOL, config, tmp_path / 'a.pth', tmp_path / 'out', *ALL, *INT8, *place)
    assert len(list((tmp_path / 'out').iterdir())) == 9


@pytest.mark.slow
def test_with_openvino_in_a_process_of_its_own():
    printed = run_python('-m', 'pytest', '-m', 'openvino', __file__, timeout=1200)
    assert re.search(r'\d+ passed', printed) and not re.search(r'\d+ failed', printed)
