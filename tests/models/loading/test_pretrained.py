import argparse

import pytest
import torch
from helpers.networks import randomize
from mmengine.model.weight_init import PretrainedInit

from mmvanilla import (
    UsageError,
    VanillaNet,
    convert_official_state_dict,
    merge_deep_convs,
    set_deep_training_lambda,
)
from mmvanilla.models.folding.network import deep_convs

FIXTURE = 'tests/data/vanillanet_6_w8_n3.pt'


@pytest.fixture
def fixture(pytestconfig):
    return torch.load(pytestconfig.rootpath / FIXTURE, weights_only=True)


def build(path, **kwargs):
    kwargs = {'arch': '6', 'widen_factor': 1 / 64, **kwargs}
    init_cfg = dict(type='Pretrained', checkpoint=None if path is None else str(path))
    backbone = VanillaNet(**kwargs, init_cfg=init_cfg)
    backbone.init_weights()
    return backbone


def test_authors_checkpoint(fixture, tmp_path):
    """EMA weights are preferred, and the Namespace in the file does not matter."""
    content = dict(
        model={k: torch.zeros_like(v) for k, v in fixture['state_dict'].items()},
        model_ema=fixture['state_dict'],
        args=argparse.Namespace(model='vanillanet_6'),
    )
    torch.save(content, tmp_path / 'official.pth')
    backbone = build(tmp_path / 'official.pth')
    assert torch.equal(backbone.stem.conv.conv1.weight, fixture['state_dict']['stem1.0.weight'])
    assert {conv.lambda_ for conv in deep_convs(backbone)} == {1.0}


def test_authors_deploy_checkpoint(fixture, tmp_path):
    torch.save(dict(model=fixture['deploy_state_dict']), tmp_path / 'deploy.pth')
    backbone = build(tmp_path / 'deploy.pth', deploy=True)
    assert torch.equal(
        backbone.stem.conv.conv.weight, fixture['deploy_state_dict']['stem.0.weight']
    )


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.backbone.'])
def test_own_checkpoints(tmp_path, prefix):
    source = randomize(VanillaNet('6', widen_factor=1 / 64))
    for conv in deep_convs(source):
        conv.lambda_ = 0.4
    weights = {prefix + k: v for k, v in source.state_dict().items()}
    if prefix:
        weights['neck.weight'] = torch.ones(1)
    torch.save(dict(state_dict=weights), tmp_path / 'a.pth')
    backbone = build(tmp_path / 'a.pth')
    for name, value in source.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], value)
    assert {conv.lambda_ for conv in deep_convs(backbone)} == {0.4}


def test_prefix_in_the_config(tmp_path):
    source = randomize(VanillaNet('6', widen_factor=1 / 64))
    torch.save({f'teacher.{k}': v for k, v in source.state_dict().items()}, tmp_path / 'a.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), prefix='teacher')
    backbone = VanillaNet('6', widen_factor=1 / 64, init_cfg=init_cfg)
    backbone.init_weights()
    assert torch.equal(backbone.stem.conv.conv1.weight, source.stem.conv.conv1.weight)


def test_config_of_classes(tmp_path):
    """In mmengine's Python-style configs, ``type`` is the class itself."""
    torch.save({'junk.weight': torch.ones(1)}, tmp_path / 'a.pth')
    init_cfg = dict(type=PretrainedInit, checkpoint=str(tmp_path / 'a.pth'))
    with pytest.raises(UsageError, match='unexpected: junk.weight'):
        VanillaNet('6', widen_factor=1 / 64, init_cfg=init_cfg).init_weights()


def test_none_is_from_scratch():
    assert build(None).stem.conv.conv1.weight.std() < 0.03


@pytest.mark.parametrize(
    ('change', 'kwargs', 'message'),
    [
        (dict(act_num=4), {}, r'series number is 4 \(9x9 kernels\).*act_num=3'),
        (dict(widen_factor=1 / 32), {}, r'of another shape: .*\(16, 3, 4, 4\) instead of \(8, 3'),
        (dict(arch='7'), {}, 'unexpected: blocks.4'),
        (dict(arch='5'), {}, 'missing: blocks.3'),
    ],
)
def test_mismatch_is_named(tmp_path, change, kwargs, message):
    source = VanillaNet(**{'arch': '6', 'widen_factor': 1 / 64, **change})
    torch.save(source.state_dict(), tmp_path / 'a.pth')
    with pytest.raises(UsageError, match=r'a\.pth does not fit the backbone: ' + '.*' + message):
        build(tmp_path / 'a.pth', **kwargs)


@pytest.mark.parametrize('form', ['authors', 'deep', 'merged'])
def test_merged_network_takes_weights_of_training(form, fixture, tmp_path):
    source = randomize(VanillaNet('6', widen_factor=1 / 64)).eval()
    if form == 'authors':
        source.load_state_dict(fixture['state_dict'], strict=False)
        weights = fixture['state_dict']
    else:
        weights = (merge_deep_convs(source) if form == 'merged' else source).state_dict()
    torch.save(weights, tmp_path / 'a.pth')
    backbone = build(tmp_path / 'a.pth', merged=True).eval()
    assert not any(conv.is_deep for conv in deep_convs(backbone))
    with torch.no_grad():
        torch.testing.assert_close(backbone(fixture['input']), source(fixture['input']))
    # torch's own loading does the same.
    again = VanillaNet('6', widen_factor=1 / 64, merged=True)
    backbone_weights = {k: v for k, v in weights.items() if not k.startswith('cls')}
    again.load_state_dict(backbone_weights, strict=True)
    for name, value in backbone.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_merged_network_of_a_shallower_one(tmp_path):
    source = randomize(VanillaNet('6', widen_factor=1 / 64))
    torch.save(source.state_dict(), tmp_path / 'a.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), source_arch='6')
    backbone = VanillaNet('6', widen_factor=1 / 64, merged=True, init_cfg=init_cfg)
    backbone.init_weights()
    expected = merge_deep_convs(source)
    assert torch.equal(backbone.blocks[1].conv.conv.weight, expected.blocks[1].conv.conv.weight)


def test_merging_on_the_way_below_one_is_refused(tmp_path):
    source = VanillaNet('6', widen_factor=1 / 64)
    set_deep_training_lambda(source, 0.4)
    torch.save(source.state_dict(), tmp_path / 'a.pth')
    with pytest.raises(UsageError, match='a.pth does not fit.*its λ is 0.4.*without merged=True'):
        build(tmp_path / 'a.pth', merged=True)
    for form in ('merged', 'deploy'):
        with pytest.raises(UsageError, match=r'fit stem\.conv: its λ is 0.4, and a pair merges'):
            VanillaNet('6', widen_factor=1 / 64, **{form: True}).load_state_dict(
                source.state_dict(), strict=False
            )


def test_nothing_is_loaded_on_mismatch(tmp_path):
    backbone = VanillaNet('6', widen_factor=1 / 64)
    weights = {
        k: v if k.endswith('_extra_state') else v + 1 for k, v in backbone.state_dict().items()
    }
    del weights['blocks.3.act.conv.weight']
    torch.save(weights, tmp_path / 'a.pth')
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    torch.manual_seed(0)
    with pytest.raises(UsageError, match='missing: blocks.3.act.conv.weight'):
        backbone.init_weights()
    assert not torch.equal(backbone.stem.conv.conv1.weight, before['stem.conv.conv1.weight'] + 1)


def test_convert_covers_every_key(fixture):
    """Backbone keys equal those of our backbone; the rest are the head's, with λ of its pair."""
    for key, deploy in (('state_dict', False), ('deploy_state_dict', True)):
        converted = convert_official_state_dict(fixture[key])
        backbone = VanillaNet('6', widen_factor=1 / 64, deploy=deploy)
        mine = {k[len('backbone.') :] for k in converted if k.startswith('backbone.')}
        assert mine == backbone.state_dict().keys()
        rest = {k for k in converted if not k.startswith('backbone.')}
        assert all(k.startswith('head.conv.') for k in rest)
        assert ('head.conv.act._extra_state' in rest) is not deploy


def test_convert_refuses_other_keys():
    with pytest.raises(UsageError, match="'layer1.weight'"):
        convert_official_state_dict({'layer1.weight': torch.ones(1)})
