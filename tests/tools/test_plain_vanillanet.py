"""The baseline of the benchmark, against the authors' implementation."""

import pytest
import torch
from helpers.networks import relative_error
from helpers.programs import ROOT
from plain_vanillanet import PlainVanillaNet


@pytest.fixture(params=['vanillanet_6_w8_n3', 'vanillanet_13_w8_n4'])
def fixture(request):
    return torch.load(ROOT / f'tests/data/{request.param}.pt', weights_only=True)


def build(fixture, deploy=False):
    model = PlainVanillaNet(
        fixture['dims'],
        fixture['strides'],
        act_num=fixture['act_num'],
        num_classes=fixture['num_classes'],
        deploy=deploy,
    )
    model.load_state_dict(fixture['deploy_state_dict' if deploy else 'state_dict'], strict=True)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize('value', ['0.0', '0.3', '1.0'])
def test_logits_equal_the_authors(fixture, value):
    model = build(fixture)
    model.set_lambda(float(value))
    assert relative_error(model(fixture['input']), fixture['logits'][value]) < 1e-5


@torch.no_grad()
def test_deploy_logits_equal_the_authors(fixture):
    model = build(fixture, deploy=True)
    assert relative_error(model(fixture['input']), fixture['deploy_logits']) < 1e-5


def test_training_equals_the_authors(fixture):
    model = build(fixture).double().train()
    model.set_lambda(0.3)
    model.cls1[1].p = 0.0
    loss = model(fixture['train_input'].double()).square().mean()
    loss.backward()
    assert abs(loss.item() / float(fixture['train_loss']) - 1) < 1e-6
    norms = {k: float(v) for k, v in fixture['train_grad_norms'].items()}
    for name, param in model.named_parameters():
        if norms[name] > 1e-9 * max(norms.values()):  # not a bias in front of a norm
            assert param.grad.norm().item() == pytest.approx(norms[name], rel=1e-6), name
