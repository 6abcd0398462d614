"""Images, norms and arguments that users give, beyond the usual ones."""

import pytest
import torch
from helpers.networks import randomize, relative_error
from mmengine.config import ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from torch import nn

from mmvanilla import (
    SeriesActivation,
    UsageError,
    VanillaNet,
    merge_deep_convs,
    set_deep_training_lambda,
    switch_to_deploy,
)
from mmvanilla.models import DeepConv
from mmvanilla.models.norm import normalize


def narrow(**kwargs):
    torch.manual_seed(0)
    return randomize(VanillaNet(**{'arch': '5', 'widen_factor': 1 / 64, 'act_num': 1, **kwargs}))


@pytest.mark.parametrize('form', ['deep', 'merged'])
@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('value', [0.3, 1.0])
def test_one_value_per_channel(form, with_cp, value):
    """One image on maps of 1x1 trains; norms that see only it use their statistics."""
    backbone = narrow(with_cp=with_cp)
    if form == 'merged':
        backbone = merge_deep_convs(backbone)
    else:
        set_deep_training_lambda(backbone, value)
    backbone.train()
    before = backbone.blocks[-1].act.norm.running_mean.clone()
    x = torch.randn(1, 3, 32, 32)
    y = backbone(x)[0]  # (1, 64, 1, 1)
    y.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters())
    assert backbone.blocks[-1].act.conv.weight.grad.abs().sum() > 0
    assert torch.equal(backbone.blocks[-1].act.norm.running_mean, before)


def test_a_classifiers_last_batch():
    pytest.importorskip('mmpretrain')
    from mmpretrain.structures import DataSample

    head = dict(type='mmvanilla.VanillaNetClsHead', num_classes=3, in_channels=64, dropout=0.0)
    backbone = dict(type='mmvanilla.VanillaNet', arch='5', widen_factor=1 / 64)
    model = MODELS.build(dict(type='mmpretrain.ImageClassifier', backbone=backbone, head=head))
    randomize(model).train()
    samples = [DataSample().set_gt_label(1)]
    loss = model.loss(torch.randn(1, 3, 64, 64), samples)['loss']
    loss.backward()
    assert torch.isfinite(loss)
    gradients = [p.grad for p in model.head.conv.parameters()]
    assert all(torch.isfinite(g).all() for g in gradients) and gradients[0].abs().sum() > 0


def test_norms_of_one_value():
    norm = randomize(nn.BatchNorm2d(4)).train()
    x = torch.randn(1, 4, 1, 1)
    torch.testing.assert_close(normalize(norm, x), norm.eval()(x))
    two = torch.randn(2, 4, 1, 1)
    assert torch.equal(normalize(norm.train(), two), norm(two))
    assert normalize(nn.Identity().train(), x) is x
    sync = revert_sync_batchnorm(nn.SyncBatchNorm(4)).train()
    assert torch.equal(normalize(sync, x), sync.eval()(x))
    called = []
    norm.register_forward_hook(lambda *args: called.append(args))
    normalize(norm.train(), x)
    assert len(called) == 1 and norm.training


@pytest.mark.parametrize('channels', [1, 4])
def test_other_channels(channels):
    backbone = narrow(in_channels=channels).eval()
    x = torch.randn(2, channels, 64, 64)
    assert relative_error(switch_to_deploy(backbone)(x)[0], backbone(x)[0]) < 1e-5
    with pytest.raises(UsageError, match=f'have 3 channel.*, but .* in_channels={channels}'):
        backbone(torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize(
    ('kwargs', 'size', 'smallest'),
    [
        (dict(arch='5'), (31, 64), 32),
        (dict(arch='13', out_indices=(0, 1)), (64, 7), 8),
        (dict(arch=dict(channels=[8, 8], strides=[2]), out_indices=1), (4, 4), 8),
    ],
)
def test_small_images(kwargs, size, smallest):
    backbone = VanillaNet(**kwargs, widen_factor=1 / 64 if 'channels' not in kwargs['arch'] else 1)
    backbone.eval()
    with pytest.raises(UsageError, match=f'make them at least {smallest} pixels high and wide'):
        backbone(torch.zeros(1, 3, *size))
    assert backbone(torch.zeros(1, 3, smallest, smallest))[-1].shape[2:] == (1, 1)


@pytest.mark.parametrize(
    'norm_cfg',
    [dict(type='BN', affine=False), dict(type='BN', eps=1e-3, momentum=None)],
)
def test_other_norms(norm_cfg):
    backbone = narrow(norm_cfg=norm_cfg).eval()
    x = torch.randn(2, 3, 64, 64)
    for fold in (merge_deep_convs, switch_to_deploy):
        folded = fold(backbone)
        assert relative_error(folded(x)[0], backbone(x)[0]) < 1e-5
        other = narrow(norm_cfg=norm_cfg).eval()
        other.load_state_dict(folded.state_dict())
        assert relative_error(other(x)[0], backbone(x)[0]) < 1e-5


@pytest.mark.parametrize('build', [DeepConv, SeriesActivation, VanillaNet])
@pytest.mark.parametrize(
    ('norm_cfg', 'message'),
    [
        (dict(type='BN', track_running_stats=False), 'folding needs running statistics'),
        (dict(type='GN', num_groups=2), "'GN', which cannot be folded"),
        (dict(type='IN'), "'IN', which cannot be folded"),
        (dict(type='LN'), "'LN', which cannot be folded"),
    ],
)
def test_norms_that_do_not_fold(build, norm_cfg, message):
    arguments = {DeepConv: (8, 8), SeriesActivation: (8,), VanillaNet: ('5',)}[build]
    with pytest.raises(UsageError, match=message):
        build(*arguments, norm_cfg=norm_cfg)


@pytest.mark.parametrize('shape', [(3, 64, 64), (64, 64), (1, 3, 1, 64, 64)])
def test_no_batches_of_images(shape):
    with pytest.raises(UsageError, match=r'must be a batch, \(N, C, H, W\), got'):
        narrow()(torch.zeros(shape))


def segmentor(backbone=None, **kwargs):
    pytest.importorskip('mmseg')
    narrow = dict(type='mmvanilla.VanillaNet', arch='5', widen_factor=1 / 64, **(backbone or {}))
    head = dict(type='FCNHead', in_channels=64, channels=8, num_classes=2)
    model = dict(type='mmseg.EncoderDecoder', backbone=narrow, decode_head=head, _scope_='mmseg')
    return MODELS.build(ConfigDict(model, **kwargs))


def test_pretrained_of_mmseg(tmp_path):
    """mmseg's segmentors hand ``pretrained`` on to their backbones."""
    source = narrow(act_num=3)
    torch.save(source.state_dict(), tmp_path / 'weights.pth')
    model = segmentor(pretrained=str(tmp_path / 'weights.pth'))
    model.init_weights()
    torch.testing.assert_close(model.backbone.state_dict(), source.state_dict())


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(pretrained='open-mmlab://resnet50_v1c'), 'the weights of another backbone: set pret'),
        (dict(pretrained='torchvision://resnet50'), 'the weights of another backbone: set pret'),
        (
            dict(pretrained='a.pth', backbone=dict(init_cfg=dict(type='TruncNormal'))),
            'both pretrained and init_cfg',
        ),
    ],
)
def test_pretrained_of_others(kwargs, message):
    with pytest.raises(UsageError, match=message):
        segmentor(**kwargs)
