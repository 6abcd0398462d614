"""Random weights for networks, and measures of what networks compute."""

import json

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.profiler import profile

from mmvanilla import merge_deep_convs, switch_to_deploy

# What brings a network to each form.
FORMS = dict(deep=lambda model: model, merged=merge_deep_convs, deploy=switch_to_deploy)
ARCHS = ['5', '6', '7', '8', '9', '10', '11', '12', '13', '13-x1.5', '13-x1.5-ada']


def randomize(model, seed=0):
    """Sets random weights and batch-norm statistics, so that every folding step matters."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.1, generator=generator)
        elif isinstance(module, _BatchNorm):
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
                module.bias.data.normal_(0, 0.3, generator=generator)
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return model


def relative_error(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


def call_and_count(function, folder):
    """Returns a function's result, and how many bytes it allocates and does not free.

    This adds up the allocations in the trace, because the profiler's own sums sometimes miss one.
    """
    with profile(profile_memory=True) as profiler:
        result = function()
    profiler.export_chrome_trace(str(folder / 'trace.json'))
    events = json.loads((folder / 'trace.json').read_text())['traceEvents']
    return result, sum(event['args']['Bytes'] for event in events if event['name'] == '[memory]')
