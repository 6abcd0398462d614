import pytest
import torch
from helpers.networks import randomize, relative_error
from helpers.pairs import zip_equal
from mmengine.model import ExponentialMovingAverage
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from mmvanilla import (
    UsageError,
    VanillaNet,
    merge_deep_convs,
    set_deep_training_lambda,
    switch_to_deploy,
)
from mmvanilla.models.folding.network import check_fused, deep_convs

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def network():
    """A network of another package around our backbone."""
    backbone = VanillaNet('7', widen_factor=1 / 64, out_indices=(2,))
    return randomize(nn.ModuleDict(dict(backbone=backbone, head=nn.Conv2d(32, 2, 1))))


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_set_lambda_everywhere(network):
    set_deep_training_lambda(network, 0.25)
    assert [conv.lambda_ for conv in deep_convs(network)] == [0.25] * 6


@pytest.mark.parametrize('update_buffers', [True, False])
def test_averaged_model(network, update_buffers):
    averaged = ExponentialMovingAverage(network, update_buffers=update_buffers)
    set_deep_training_lambda(averaged, 0.5)
    with pytest.raises(UsageError, match='λ = 0.5'):
        switch_to_deploy(averaged)
    set_deep_training_lambda(averaged, 1)
    for function in (merge_deep_convs, switch_to_deploy):
        bare = function(averaged)
        assert isinstance(bare, nn.ModuleDict)
        expected = network['backbone'].eval()(X)[0]
        assert relative_error(bare['backbone'].eval()(X)[0], expected) < 1e-5


def test_ddp(network, process_group):
    expected = network['backbone'].eval()(X)[0]
    ddp = DistributedDataParallel(network)
    for function in (merge_deep_convs, switch_to_deploy):
        bare = function(ddp)
        assert isinstance(bare, nn.ModuleDict)
        assert relative_error(bare['backbone'].eval()(X)[0], expected) < 1e-5
    assert switch_to_deploy(ddp, inplace=True) is network


def test_merge_keeps_mode_and_requires_grad():
    backbone = VanillaNet('7', widen_factor=1 / 64, frozen_stages=1)
    merged = merge_deep_convs(backbone.train())
    assert merged.training
    assert not merged.stem.conv.conv.weight.requires_grad
    assert merged.blocks[-1].conv.conv.weight.requires_grad
    assert not merge_deep_convs(backbone.eval()).training


def test_modules_of_other_packages_are_switched(network):
    class Other(nn.Module):
        def switch_to_deploy(self):
            self.deployed = True

    network['other'] = Other()
    assert switch_to_deploy(network)['other'].deployed


def test_results_that_a_module_keeps_are_copied(network):
    """Some heads keep features, and torch refuses to copy tensors that have a graph."""
    network.eval()
    kept = [network.backbone(X[:1])[0] * factor for factor in range(5)]
    network.head.kept = [*kept, kept[0]]
    copied = switch_to_deploy(network).head.kept
    for got, expected in zip_equal(copied, network.head.kept):
        assert torch.equal(got, expected) and not got.requires_grad
        assert got.data_ptr() != expected.data_ptr()
    assert copied[0] is copied[5]


def test_check_fused_finds_a_wrong_layer(network):
    fused = switch_to_deploy(network)
    check_fused(network, fused)
    fused['backbone'].blocks[2].act.conv.bias.data[0] += 0.1
    with pytest.raises(RuntimeError, match=r'backbone\.blocks\.2\.act'):
        check_fused(network, fused)


def prune_weight(layer):
    prune.l1_unstructured(layer.conv1, 'weight', 0.5)


def prune_bias(layer):
    prune.l1_unstructured(layer.conv1, 'bias', 0.5)


def prune_norm(layer):
    prune.l1_unstructured(layer.norm1, 'weight', 0.5)


def parametrize_norm(layer):
    parametrize.register_parametrization(layer.norm, 'weight', nn.Softplus())


CHANGES = {
    'pruned weight': prune_weight,
    'pruned bias': prune_bias,
    'pruned norm': prune_norm,
    'weight norm': lambda layer: weight_norm(layer.conv1),
    'spectral norm': lambda layer: spectral_norm(layer.conv1),
    'parametrized norm': parametrize_norm,
    'parametrized spectral norm': lambda layer: parametrizations.spectral_norm(layer.conv2),
}


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('fold', [merge_deep_convs, switch_to_deploy])
def test_layers_that_others_changed(change, fold):
    """Their weights are computed before each call; folding takes those of now, not of the last."""
    backbone = randomize(VanillaNet('5', widen_factor=1 / 64, act_num=1)).train()
    CHANGES[change](backbone.blocks[1].conv)
    x = torch.randn(2, 3, 64, 64)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.05)
    backbone(x)[0].square().mean().backward()
    optimizer.step()
    folded = fold(backbone).eval()
    assert relative_error(folded(x)[0], backbone.eval()(x)[0]) < 1e-5
