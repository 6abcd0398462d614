"""What can be checked of older environments without building them."""

import pytest
import torch
from helpers.programs import ROOT, run_python
from torch import nn

from mmvanilla.compatibility import SyncBatchNorm

# Imports mmvanilla where torch lacks what torch 1.13 lacks; afterwards torch itself needs it again.
IMPORT = """
import mmengine.runner
import torch
names = ('compile', 'compiler', 'export', '_utils.is_compiling', 'nn.Module.compile')
taken = []
for name in (*names, 'serialization.add_safe_globals'):
    *owners, last = name.split('.')
    owner = torch
    for each in owners:
        owner = getattr(owner, each)
    if hasattr(owner, last):
        taken.append((owner, last, getattr(owner, last)))
        delattr(owner, last)
torch.__version__ = '1.13.1'
import mmvanilla
for owner, name, value in taken:
    setattr(owner, name, value)
"""
USE = """
from mmvanilla.checkpoint import load_checkpoint
from mmvanilla.cli.checks import check_channels
from mmvanilla.compatibility import is_compiling, meta_device
with meta_device():
    assert next(mmvanilla.VanillaNet('5', widen_factor=1 / 64).parameters()).device.type == 'cpu'
assert not is_compiling()
backbone = mmvanilla.VanillaNet('5', widen_factor=1 / 64, with_cp=True)
images = torch.rand(2, 3, 64, 64).requires_grad_()
sum(features.mean() for features in backbone(images)).backward()
assert images.grad.abs().sum() > 0
torch.save(backbone.state_dict(), 'weights.pth')
backbone.load_state_dict(load_checkpoint('weights.pth'))
fused = mmvanilla.optimize_for_inference(backbone.eval())
torch.testing.assert_close(fused(images), backbone(images), rtol=1e-3, atol=1e-4)
"""


def test_without_what_torch_1_13_lacks(tmp_path):
    output = run_python('-W', 'ignore', '-c', IMPORT + USE, cwd=tmp_path)
    assert 'networks run without it: torch 1.13.1 cannot compile it' in output


def test_code_is_for_python_3_8():
    """The linter checks the syntax of the lowest Python, vermin also its library."""
    assert "target-version = 'py38'" in (ROOT / 'pyproject.toml').read_text()
    places = [str(ROOT / name) for name in ('mmvanilla', 'tools', 'tests', 'setup.py')]
    vermin = ['-c', 'import vermin; vermin.main()', '--no-tips', '--eval-annotations', '-v']
    output = run_python(*vermin, '-t=3.8-', *places)
    assert 'Minimum required versions: 3.8' in output


@pytest.mark.parametrize('training', [True, False])
def test_synchronized_norm_of_one_process_on_a_cpu(training):
    images = torch.rand(4, 3, 5, 5)
    outputs = []
    for norm in (SyncBatchNorm(3), nn.BatchNorm2d(3)):
        norm.running_mean.fill_(0.3)
        outputs.append([norm.train(training)(images), norm.running_mean, norm.running_var])
    torch.testing.assert_close(*outputs)
