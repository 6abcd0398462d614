"""Training under torch's FSDP2, which replaces parameters while a module is called."""

import copy

import pytest
import torch
from helpers.networks import randomize, relative_error
from helpers.versions import needs_torch
from torch import distributed, nn

from mmvanilla import VanillaNet, set_deep_training_lambda
from mmvanilla.models import DeepConv
from mmvanilla.models.vanillanet import VanillaBlock

SHARDED = {'whole': (), 'blocks': VanillaBlock, 'pairs': DeepConv, 'convolutions': nn.Conv2d}


def network(**kwargs):
    torch.manual_seed(0)
    backbone = randomize(VanillaNet('5', widen_factor=1 / 32, act_num=1, **kwargs))
    set_deep_training_lambda(backbone, 1 if kwargs.get('merged') else 0.5)
    return backbone


def gradients_of(model):
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    (model(x)[0] ** 3).mean().backward()
    return [getattr(p.grad, 'full_tensor', lambda g=p.grad: g)() for p in model.parameters()]


def train(rank, folder, kinds, kwargs):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=2)
    mesh = init_device_mesh('cpu', (2,))
    model = network(**kwargs)
    expected = gradients_of(copy.deepcopy(model))
    for module in list(model.modules()):
        if isinstance(module, kinds):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for got, one in zip(gradients_of(model), expected):
        if one.abs().max() > 1e-6:  # biases before a norm have only rounding errors
            assert relative_error(got / got.norm(), one / one.norm()) < 1e-4  # gloo adds them up
    distributed.destroy_process_group()


@pytest.mark.slow
@needs_torch('2.6', 'fully_shard')
@pytest.mark.parametrize('kwargs', [{}, dict(merged=True), dict(with_cp=True)], ids=str)
@pytest.mark.parametrize('where', SHARDED)
def test_fully_shard(where, kwargs, tmp_path):
    """Whichever layers it is applied to, each process has the gradients of one process."""
    torch.multiprocessing.spawn(train, (tmp_path, SHARDED[where], kwargs), nprocs=2)
