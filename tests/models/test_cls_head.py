"""The classifier, in mmpretrain's ImageClassifier, against the authors' implementation."""

from inspect import signature

import pytest
import torch
import torch.nn.functional as F
from helpers.networks import randomize, relative_error
from helpers.programs import ROOT, run_python
from mmpretrain.models import ImageClassifier
from mmpretrain.models.heads import ClsHead
from mmpretrain.structures import DataSample

from mmvanilla import (
    UsageError,
    VanillaNetClsHead,
    convert_official_state_dict,
    merge_deep_convs,
    set_deep_training_lambda,
    switch_to_deploy,
)
from mmvanilla.models.folding.network import deep_convs


@pytest.fixture(params=['vanillanet_6_w8_n3', 'vanillanet_13_w8_n4'])
def fixture(request):
    return torch.load(ROOT / f'tests/data/{request.param}.pt', weights_only=True)


def build(fixture, key='state_dict', dropout=0.05, merged=False):
    deploy = key == 'deploy_state_dict'
    model = ImageClassifier(
        backbone=dict(
            type='mmvanilla.VanillaNet',
            arch=dict(channels=fixture['dims'], strides=fixture['strides']),
            act_num=fixture['act_num'],
            merged=merged,
            deploy=deploy,
        ),
        head=dict(
            type='mmvanilla.VanillaNetClsHead',
            num_classes=fixture['num_classes'],
            in_channels=fixture['dims'][-1],
            dropout=dropout,
            merged=merged,
            deploy=deploy,
        ),
    )
    model.load_state_dict(convert_official_state_dict(fixture[key]), strict=True)
    return model.eval()


@pytest.mark.parametrize('value', ['0.0', '0.3', '1.0'])
def test_logits_equal_the_authors(fixture, value):
    model = build(fixture)
    set_deep_training_lambda(model, float(value))
    with torch.no_grad():
        assert relative_error(model(fixture['input']), fixture['logits'][value]) < 1e-5


def test_deploy_logits_equal_the_authors(fixture):
    fused = switch_to_deploy(build(fixture))
    loaded = build(fixture, 'deploy_state_dict')
    assert fused.state_dict().keys() == loaded.state_dict().keys()
    with torch.no_grad():
        for model in (fused, loaded):
            assert relative_error(model(fixture['input']), fixture['deploy_logits']) < 1e-5


def test_merged_form(fixture):
    model = build(fixture)
    with torch.no_grad():
        expected = model(fixture['input'])
        built = build(fixture, merged=True)
        assert built.state_dict().keys() == merge_deep_convs(model).state_dict().keys()
        for merged in (merge_deep_convs(model), built):
            assert relative_error(merged(fixture['input']), expected) < 1e-5


def test_merged_head_of_other_classes():
    """torch reports the mismatch; in fine-tuning, mmengine skips weights of another shape."""
    weights = VanillaNetClsHead(7, 16).state_dict()
    head = VanillaNetClsHead(5, 16, merged=True)
    with pytest.raises(RuntimeError, match='size mismatch for conv.conv.weight'):
        head.load_state_dict(weights, strict=False)


def test_training_loss_and_gradients_equal_the_authors(fixture):
    model = build(fixture, dropout=0.0).double().train()
    set_deep_training_lambda(model, 0.3)
    loss = model(fixture['train_input'].double()).square().mean()
    loss.backward()
    assert abs(loss.item() / float(fixture['train_loss']) - 1) < 1e-6
    given = {k: torch.tensor(float(v)) for k, v in fixture['train_grad_norms'].items()}
    expected = convert_official_state_dict(given)
    largest = max(given.values())
    checked = 0
    for name, param in model.named_parameters():
        norm = param.grad.norm().item()
        if expected[name] < 1e-9 * largest:  # a bias in front of a norm
            assert name.endswith('.bias') and norm < 1e-9 * largest, name
        else:
            assert norm == pytest.approx(float(expected[name]), rel=1e-6), name
            checked += 1
    assert checked > len(given) / 2


def head_and_samples(num_classes=10, soft=False, **kwargs):
    head = randomize(VanillaNetClsHead(num_classes, 16, dropout=0.0, **kwargs))
    feats = (torch.randn(4, 16, 3, 2),)
    target = torch.rand(4, num_classes).softmax(1) if soft else torch.arange(4)
    samples = [DataSample() for _ in target]
    for sample, each in zip(samples, target):
        sample.set_gt_score(each) if soft else sample.set_gt_label(each)
    return head, feats, target if soft else F.one_hot(target, num_classes).float(), samples


@pytest.mark.parametrize('soft', [False, True])
def test_loss_is_the_mean_cross_entropy_of_each_class(soft):
    head, feats, target, samples = head_and_samples(soft=soft)
    smoothed = 0.9 * target + 0.1 / 10
    expected = F.binary_cross_entropy_with_logits(head(feats), smoothed)
    torch.testing.assert_close(head.loss(feats, samples)['loss'], expected)


def test_loss_of_the_users_choice():
    loss = dict(type='mmpretrain.CrossEntropyLoss')
    head, feats, target, samples = head_and_samples(loss=loss, cal_acc=True, topk=(1, 5))
    found = head.loss(feats, samples)
    torch.testing.assert_close(found['loss'], F.cross_entropy(head(feats), target.argmax(1)))
    assert {'accuracy_top-1', 'accuracy_top-5'} <= found.keys()


def test_head_is_one_deep_convolution():
    head, feats, _, _ = head_and_samples()
    assert isinstance(head, ClsHead)
    assert len(list(deep_convs(head))) == 1
    assert tuple(head.conv.conv1.weight.shape) == (10, 16, 1, 1)
    assert head.conv.norm1.eps == 1e-6 and isinstance(head.conv.norm, torch.nn.Identity)
    assert tuple(head.pre_logits(feats).shape) == (4, 16)
    head.eval()
    expected = head(feats)
    set_deep_training_lambda(head, 0.5)
    with pytest.raises(UsageError, match='λ = 0.5'):
        head.switch_to_deploy()
    set_deep_training_lambda(head, 1)
    head.switch_to_deploy()
    assert [name for name, _ in head.named_parameters()] == ['conv.conv.weight', 'conv.conv.bias']
    torch.testing.assert_close(head(feats), expected)


def test_dropout_in_training_alone():
    head = VanillaNetClsHead(10, 4096)
    assert head.dropout.p == 0.05
    kept = head.dropout(torch.ones(100, 4096))
    assert (kept == 0).float().mean().item() == pytest.approx(0.05, abs=0.005)
    feats = (torch.randn(2, 4096, 2, 2),)
    assert torch.equal(head.eval()(feats), head(feats))


def test_initialization():
    head = VanillaNetClsHead(100, 512)
    head.init_weights()
    for conv in (head.conv.conv1, head.conv.conv2):
        assert conv.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert conv.bias.abs().max() == 0


def test_nothing_is_imported_before_it_is_needed():
    code = """
import sys
import mmvanilla
from mmvanilla.registry import MODELS
MODELS.build(dict(type='mmvanilla.VanillaNet', arch='5', widen_factor=1 / 64))
print({'mmdet', 'mmpretrain', 'mmcv', 'torchvision'} & sys.modules.keys())
MODELS.build(dict(type='mmvanilla.VanillaNetClsHead', num_classes=2, in_channels=4))
print('mmpretrain' in sys.modules, MODELS.get('VanillaNetClsHead') is mmvanilla.VanillaNetClsHead)
"""
    assert run_python('-W', 'ignore', '-c', code).splitlines()[-2:] == ['set()', 'True True']


@pytest.mark.parametrize(
    'use',
    [
        'from mmvanilla import VanillaNetClsHead',
        "MODELS.build(dict(type='mmvanilla.VanillaNetClsHead', num_classes=2, in_channels=4))",
    ],
)
def test_missing_mmpretrain_is_said(use):
    code = f"""
import sys
sys.modules['mmpretrain'] = None  # as if it were not installed
import mmvanilla
from mmvanilla.registry import MODELS
mmvanilla.VanillaNet('5', widen_factor=1 / 64)
{use}
"""
    result = run_python('-c', code, check=False)
    assert result.returncode != 0
    assert 'needs mmpretrain, which cannot be imported (' in result.stdout.splitlines()[-1]


def test_public_name():
    import mmvanilla

    assert 'VanillaNetClsHead' in dir(mmvanilla)
    assert list(signature(VanillaNetClsHead).parameters)[:5] == [
        'num_classes', 'in_channels', 'dropout', 'loss', 'deploy',
    ]  # fmt: skip
    with pytest.raises(AttributeError, match="'mmvanilla' has no attribute 'Nothing'"):
        _ = mmvanilla.Nothing
