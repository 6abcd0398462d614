"""Times classifiers: ours in all their forms, a plain PyTorch baseline, and any of mmpretrain's.

The forms take turns; times are medians. Peak memory is that of a separate process, including the
weights, without memory that malloc would keep for later. The error is the largest difference from
the first form's outputs, relative to the largest of them. For int8, random images set the ranges.
"""

import argparse
import copy
import csv
import ctypes
import gc
import io
import re
import warnings
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import mmpretrain
import torch
import torch.nn.functional as F
from new_process import in_new_process
from plain_vanillanet import PlainVanillaNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmvanilla import (
    VanillaNet,
    convert_official_state_dict,
    merge_deep_convs,
    optimize_for_inference,
    switch_to_deploy,
)
from mmvanilla.checkpoint import replace_when_whole
from mmvanilla.cli.options import add_device, log_errors_only, one_sentence_errors
from mmvanilla.cli.tables import print_table
from mmvanilla.cli.timing import describe_machine, time_by_turns
from mmvanilla.compatibility import meta_device, onnx_by_tracing
from mmvanilla.deployment.exporting import OPSET, need
from mmvanilla.errors import UsageError

M_MMAP_THRESHOLD = -3  # of malloc.h
SHAPE = (224, 224)  # of the images that networks are exported and quantized with
OURS = re.compile(r'vanillanet-(.+)_in1k')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('models', nargs='+', help='names in mmpretrain.list_models()')
    parser.add_argument(
        '--forms',
        nargs='+',
        choices=FORMS,
        help='defaults: training: plain deep merged; inference: plain-deploy deploy optimized '
        'optimized-bf16',
    )
    parser.add_argument('--task', choices=['inference', 'training'], default='inference')
    parser.add_argument('--batch-size', type=int, nargs='+', default=[1])
    parser.add_argument('--shape', type=int, nargs=2, default=(224, 224), metavar=('H', 'W'))
    parser.add_argument('--rounds', type=int, default=10, help='how many times each is timed')
    add_device(parser)
    parser.add_argument('--csv', type=Path, help='file for the numbers')
    return parser.parse_args()


def make_model(name: str) -> nn.Module:
    """A classifier of mmpretrain with random weights, and random statistics of its norms."""
    torch.manual_seed(0)
    model = mmpretrain.get_model(name)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    model.name = name
    return model.eval()


def make_plain(model: nn.Module) -> PlainVanillaNet:
    """The baseline with the weights of one of ours, in deep or deploy form."""
    backbone = model.backbone
    deploy = not backbone.stem.conv.is_deep
    arch = VanillaNet.arch_settings[OURS.fullmatch(model.name)[1]]
    plain = PlainVanillaNet(**arch, act_num=backbone.act_num, deploy=deploy).eval()
    names = convert_official_state_dict({name: name for name in plain.state_dict()})
    weights = model.state_dict()
    plain.load_state_dict(
        {name: weights[own] for own, name in names.items() if isinstance(name, str)}, strict=True
    )
    return plain


class Exported(nn.Module):
    """A fused network in another runtime, on the CPU.

    Args:
        model: The network.
        device: 'cpu'.
        precision: OpenVINO's: 'float32', 'bfloat16' or 'int8'; None for onnxruntime.
    """

    def __init__(self, model: nn.Module, device: str, precision: Optional[str] = None) -> None:
        super().__init__()
        fused = switch_to_deploy(model)
        images = torch.rand(1, 3, *SHAPE)
        axes = {'images': {0: 'batch', 2: 'height', 3: 'width'}}
        threads = torch.get_num_threads()
        with TemporaryDirectory() as folder:
            path = f'{folder}/network.onnx'
            with onnx_by_tracing(), torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter('ignore')  # torch advertises its other exporter
                torch.onnx.export(
                    *(fused, images, path),
                    input_names=['images'],
                    dynamic_axes=axes,
                    opset_version=OPSET,
                )
            if precision is None:
                import onnxruntime

                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = threads
                session = onnxruntime.InferenceSession(
                    path, options, providers=['CPUExecutionProvider']
                )
                self.run = lambda x: session.run(None, {'images': x.numpy()})[0]
                return
            import openvino

            network = openvino.convert_model(path)
        if precision == 'int8':
            import nncf

            nncf.set_log_level('ERROR')
            data = nncf.Dataset([torch.rand(1, 3, *SHAPE).numpy() for _ in range(8)])
            with redirect_stdout(io.StringIO()):  # it shows its progress
                network = nncf.quantize(network, data, subset_size=8)
        hints = {
            'INFERENCE_PRECISION_HINT': 'bf16' if precision == 'bfloat16' else 'f32',
            'INFERENCE_NUM_THREADS': threads,
        }
        compiled = openvino.compile_model(network, 'CPU', hints)
        self.run = lambda x: compiled(x.numpy())[0]

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.run(images))


# Form -> what makes it from a model in deep form, on a device.
FORMS: Dict[str, Callable[[nn.Module, str], nn.Module]] = {
    'plain': lambda model, device: make_plain(model).to(device),
    'plain-deploy': lambda model, device: make_plain(switch_to_deploy(model)).to(device),
    'deep': lambda model, device: copy.deepcopy(model).to(device),
    'merged': lambda model, device: merge_deep_convs(model).to(device),
    'deploy': lambda model, device: switch_to_deploy(model).to(device),
    'optimized': lambda model, device: optimize_for_inference(model, device),
    'optimized-bf16': partial(optimize_for_inference, dtype=torch.bfloat16),
    'onnxruntime': Exported,
    'openvino': partial(Exported, precision='float32'),
    'openvino-bf16': partial(Exported, precision='bfloat16'),
    'openvino-int8': partial(Exported, precision='int8'),
}
DEFAULT_FORMS = {
    'training': ['plain', 'deep', 'merged'],
    'inference': ['plain-deploy', 'deploy', 'optimized', 'optimized-bf16'],
}
HEAD = (
    *('model', 'form', 'task', 'batch size', 'ms', 'images/s', 'times faster', 'peak MiB'),
    *('of the memory', 'error'),
)
# The packages of other runtimes, on CPUs alone.
PACKAGES = {
    'onnxruntime': ('onnx', 'onnxruntime'),
    'openvino': ('onnx', 'openvino'),
    'openvino-bf16': ('onnx', 'openvino'),
    'openvino-int8': ('onnx', 'openvino', 'nncf'),
}
NOT_FOR_TRAINING = ('plain-deploy', 'deploy', 'optimized', 'optimized-bf16', *PACKAGES)
OURS_ALONE = ('plain', 'plain-deploy', 'merged')


def make_step(model: nn.Module, images: Tensor, task: str) -> Callable[[], Any]:
    """What is timed: a forward pass, or a training step with its optimizer."""
    if task == 'inference':
        return torch.inference_mode()(partial(model, images))
    model.train()
    labels = torch.arange(len(images), device=images.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def resident(kind: str) -> float:
    """Memory of this process in MiB, now ('VmRSS') or at most since the last reset ('VmHWM')."""
    (kib,) = re.findall(rf'{kind}:\s+(\d+)', Path('/proc/self/status').read_text())
    return int(kib) / 1024


def measure_memory(name: str, form: str, size: Tuple[int, ...], task: str, device: str) -> float:
    """Peak memory (MiB) of a form's weights and two steps; in a process of its own."""
    log_errors_only()
    if device == 'cpu':  # freed memory is returned to the system at once
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
    with meta_device():
        mmpretrain.get_model(name)  # imports much that is not part of the model
    before = resident('VmRSS')
    model = FORMS[form](make_model(name), device)
    gc.collect()
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    else:
        Path('/proc/self/clear_refs').write_text('5')
    step = make_step(model, torch.rand(size, device=device), task)
    for _ in range(2):
        step()
    if device == 'cuda':
        return torch.cuda.max_memory_allocated() / 2**20
    return resident('VmHWM') - before


def time_forms(
    name: str, forms: List[str], size: Tuple[int, ...], task: str, rounds: int, device: str
) -> Tuple[List[float], List[Tensor]]:
    """Seconds of each form of a model, taking turns, and its outputs."""
    deep = make_model(name)
    models = [FORMS[form](deep, device) for form in forms]
    images = torch.rand(size, device=device)
    with torch.inference_mode():
        outputs = [model(images).float().clone() for model in models]
    steps = [make_step(model, images, task) for model in models]
    return time_by_turns(steps, rounds, device=device), outputs


def benchmark(
    name: str, forms: List[str], size: Tuple[int, ...], task: str, rounds: int, device: str
) -> List[List[str]]:
    """One row of ``HEAD`` for each form of a model."""
    seconds, outputs = time_forms(name, forms, size, task, rounds, device)
    scale = outputs[0].abs().max()
    gc.collect()
    memory = [in_new_process(measure_memory, name, form, size, task, device) for form in forms]
    return [
        [
            *(name, form, task, str(size[0])),
            f'{1000 * seconds[i]:.4g}',
            f'{size[0] / seconds[i]:.4g}',
            f'{seconds[0] / seconds[i]:.2f}',
            f'{memory[i]:.0f}',
            f'{memory[i] / memory[0]:.2f}',
            f'{((outputs[i] - outputs[0]).abs().max() / scale).item():.1e}',
        ]
        for i, form in enumerate(forms)
    ]


def check(args: argparse.Namespace) -> None:
    """Raises UsageError for models and forms that do not go together."""
    known = set(mmpretrain.list_models())
    for name in args.models:
        if name not in known:
            raise UsageError(f'{name} is not in mmpretrain.list_models().')
    others = [name for name in args.models if not OURS.fullmatch(name)]
    for form in args.forms:
        if args.task == 'training' and form in NOT_FOR_TRAINING:
            raise UsageError(f'form {form} cannot be trained: leave it out.')
        if form in PACKAGES:
            need(f'form {form}', *PACKAGES[form])
            if args.device != 'cpu':
                raise UsageError(f'form {form} runs on the CPU here: add --device cpu.')
        if form in OURS_ALONE and others:
            raise UsageError(f'{others[0]} has no form {form}: choose deep, deploy or optimized.')


def main() -> None:
    args = parse_args()
    args.forms = args.forms or DEFAULT_FORMS[args.task]
    check(args)
    log_errors_only()
    print(
        f'{describe_machine(args.device)}, images of {args.shape[0]}x{args.shape[1]}, medians of '
        f'{args.rounds}\n',
        flush=True,
    )
    rows = []

    def cells() -> Iterator[List[str]]:
        for batch_size in args.batch_size:
            size = (batch_size, 3, *args.shape)
            for name in args.models:
                found = benchmark(name, args.forms, size, args.task, args.rounds, args.device)
                rows.extend(found)
                yield from found

    print_table(HEAD, cells())
    if args.csv:
        with replace_when_whole(args.csv) as temporary, open(temporary, 'w', newline='') as file:
            writer = csv.writer(file)
            writer.writerow(HEAD)
            writer.writerows(rows)


if __name__ == '__main__':
    with one_sentence_errors():
        main()
