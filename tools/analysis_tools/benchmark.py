"""Times classifiers: ours in all their forms, a plain PyTorch baseline, and any of mmpretrain's.

The forms take turns; times are medians. Peak memory includes the weights; on a CPU it is that of a
separate process, without memory that malloc would keep for later. The error is the largest
difference from the first form's outputs, relative to the largest of them. For int8, random images
set the ranges.
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
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import mmpretrain
import torch
import torch.nn.functional as F
from new_process import in_new_process
from plain_vanillanet import PlainVanillaNet
from series_activation import DTYPES, LAYOUTS
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
PRECISIONS = dict(DTYPES, tf32=torch.float32)
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
    add_case(parser)
    add_device(parser)
    parser.add_argument('--csv', type=Path, help='file for the numbers')
    return parser.parse_args()


class Case(NamedTuple):
    """What a network is timed with.

    Attributes:
        size: Of a batch of images, (N, C, H, W).
        task: 'inference', 'training' or 'detection'.
        device: 'cpu' or 'cuda'.
        precision: One of ``PRECISIONS``. Inference computes in it throughout; training and
            detection in float16 and bfloat16 use torch's automatic mixed precision.
        layout: One of ``LAYOUTS``, of images and networks.
    """

    size: Tuple[int, ...]
    task: str
    device: str
    precision: str = 'float32'
    layout: str = 'contiguous'

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision]

    def put(self, model: nn.Module) -> nn.Module:
        """A network or images, on the device, in the layout, and for inference in the precision."""
        dtype = self.dtype if self.task == 'inference' else torch.float32
        return model.to(self.device, dtype, memory_format=LAYOUTS[self.layout])

    def images(self) -> Tensor:
        """A batch of random images."""
        return self.put(torch.rand(self.size, device=self.device))

    def autocast(self) -> torch.autocast:
        """Automatic mixed precision, if the precision has half as many bits."""
        half = self.dtype != torch.float32
        return torch.autocast(self.device, self.dtype if half else None, enabled=half)


def set_precision(precision: str) -> None:
    """Whether a GPU may round to TF32; by default torch does so in convolutions alone."""
    allowed = precision == 'tf32'
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def add_case(parser: argparse.ArgumentParser) -> None:
    """Adds the options for a ``Case``'s precision and layout."""
    parser.add_argument(
        '--precision', choices=PRECISIONS, default='float32', help='tf32 and float16 are for GPUs'
    )
    parser.add_argument('--layout', choices=LAYOUTS, default='contiguous')


def make_case(args: argparse.Namespace, size: Tuple[int, ...], task: str) -> Case:
    """The case that options name.

    Raises:
        UsageError: for a precision or form that the device does not have.
    """
    if args.device == 'cpu':
        if args.precision in ('tf32', 'float16'):
            raise UsageError(f'--precision {args.precision} is for GPUs: leave it out.')
        for form in FOR_GPUS:
            if form in getattr(args, 'forms', ()):
                raise UsageError(f'form {form} is for GPUs: leave it out.')
    return Case(size, task, args.device, args.precision, args.layout)


def make_model(name: str, case: Case) -> nn.Module:
    """A classifier of mmpretrain with random weights, and random statistics of its norms.

    It is in float32, and on the device.
    """
    torch.manual_seed(0)
    model = mmpretrain.get_model(name).to(case.device)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
        elif hasattr(module, 'get_attn_mask') and case.task == 'inference':
            module.get_attn_mask = in_dtype(module.get_attn_mask, case.dtype)  # always float32
    model.name = name
    return model.eval()


def in_dtype(function: Callable[..., Optional[Tensor]], dtype: torch.dtype) -> Callable:
    """A function whose tensors, where it returns one, have a dtype."""

    def call(*args: Any, **kwargs: Any) -> Optional[Tensor]:
        found = function(*args, **kwargs)
        return None if found is None else found.to(dtype)

    return call


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
        case: On a CPU.
        precision: OpenVINO's: 'float32', 'bfloat16' or 'int8'; None for onnxruntime.
    """

    def __init__(self, model: nn.Module, case: Case, precision: Optional[str] = None) -> None:
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


class Graphed(nn.Module):
    """A network whose kernels are recorded once and then started together, as a CUDA graph.

    Args:
        model: The network, for inference on a GPU.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.graph: Optional[torch.cuda.CUDAGraph] = None

    def record(self, images: Tensor) -> None:
        """Records the kernels for images of a size."""
        self.graph, self.read = torch.cuda.CUDAGraph(), images.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(3):  # chooses kernels, allocates memory
                self.model(self.read)
            with torch.cuda.graph(self.graph, stream=stream):
                self.written = self.model(self.read)

    def forward(self, images: Tensor) -> Tensor:
        if self.graph is None:
            self.record(images)
        self.read.copy_(images)
        self.graph.replay()
        return self.written.clone()


def optimized(model: nn.Module, case: Case) -> nn.Module:
    return optimize_for_inference(model, case.device, case.dtype)


# Form -> what makes it from a model in deep form.
FORMS: Dict[str, Callable[[nn.Module, Case], nn.Module]] = {
    'plain': lambda model, case: case.put(make_plain(model)),
    'plain-deploy': lambda model, case: case.put(make_plain(switch_to_deploy(model))),
    'plain-graph': lambda model, case: Graphed(case.put(make_plain(switch_to_deploy(model)))),
    'deep': lambda model, case: case.put(copy.deepcopy(model)),
    'deep-cp': lambda model, case: case.put(with_cp(copy.deepcopy(model))),
    'merged': lambda model, case: case.put(merge_deep_convs(model)),
    'merged-cp': lambda model, case: case.put(with_cp(merge_deep_convs(model))),
    'merged-compiled': lambda model, case: torch.compile(case.put(merge_deep_convs(model))),
    'deploy': lambda model, case: case.put(switch_to_deploy(model)),
    'graph': lambda model, case: Graphed(case.put(switch_to_deploy(model))),
    'optimized': optimized,
    'optimized-bf16': lambda model, case: optimized(model, case._replace(precision='bfloat16')),
    'onnxruntime': Exported,
    'openvino': partial(Exported, precision='float32'),
    'openvino-bf16': partial(Exported, precision='bfloat16'),
    'openvino-int8': partial(Exported, precision='int8'),
}


def with_cp(model: nn.Module) -> nn.Module:
    """The network, recomputing activations in the backward pass."""
    model.backbone.with_cp = True
    return model


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
FOR_TRAINING = ('plain', 'deep', 'deep-cp', 'merged', 'merged-cp', 'merged-compiled')
FOR_GPUS = ('plain-graph', 'graph')
OF_ANY_MODEL = ('deep', 'deploy', 'graph', 'optimized', 'optimized-bf16', *PACKAGES)


def make_step(model: nn.Module, images: Tensor, case: Case) -> Callable[[], Any]:
    """What is timed: a forward pass, or a training step with its optimizer."""
    if case.task == 'inference':
        return torch.inference_mode()(partial(model, images))
    model.train()
    labels = torch.arange(len(images), device=images.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    # torch < 2.3 has only the latter.
    make_scaler = getattr(torch.amp, 'GradScaler', torch.cuda.amp.GradScaler)
    scaler = make_scaler(enabled=case.dtype == torch.float16)

    def step() -> None:
        optimizer.zero_grad()
        with case.autocast():
            loss = F.cross_entropy(model(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def resident(kind: str) -> float:
    """Memory of this process in MiB, now ('VmRSS') or at most since the last reset ('VmHWM')."""
    (kib,) = re.findall(rf'{kind}:\s+(\d+)', Path('/proc/self/status').read_text())
    return int(kib) / 1024


def measure_memory(name: str, form: str, case: Case) -> float:
    """Peak memory (MiB) of a form's weights and two steps; on a CPU, call it in a new process."""
    log_errors_only()
    set_precision(case.precision)
    on_gpu = case.device == 'cuda'
    if not on_gpu:  # freed memory is returned to the system at once
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
    with meta_device():
        mmpretrain.get_model(name)  # imports much that is not part of the model
    gc.collect()
    before = torch.cuda.memory_allocated() / 2**20 if on_gpu else resident('VmRSS')
    model = FORMS[form](make_model(name, case), case)
    gc.collect()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path('/proc/self/clear_refs').write_text('5')
    step = make_step(model, case.images(), case)
    step()
    if on_gpu and case.task == 'training':  # the first step may compile, and tries kernels then
        torch.cuda.reset_peak_memory_stats()
    step()
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else resident('VmHWM')
    return peak - before


def time_forms(
    name: str, forms: List[str], case: Case, rounds: int
) -> Tuple[List[float], List[Tensor]]:
    """Seconds of each form of a model, taking turns, and its outputs."""
    set_precision(case.precision)
    deep = make_model(name, case)
    models = [FORMS[form](deep, case) for form in forms]
    images = case.images()
    with torch.inference_mode():
        outputs = [model(images).float().clone() for model in models]
    steps = [make_step(model, images, case) for model in models]
    return time_by_turns(steps, rounds, device=case.device), outputs


def benchmark(name: str, forms: List[str], case: Case, rounds: int) -> List[List[str]]:
    """One row of ``HEAD`` for each form of a model."""
    seconds, outputs = time_forms(name, forms, case, rounds)
    scale = outputs[0].abs().max()
    gc.collect()
    measure = measure_memory if case.device == 'cuda' else partial(in_new_process, measure_memory)
    memory = [measure(name, form, case) for form in forms]
    return [
        [
            *(name, form, case.task, str(case.size[0])),
            f'{1000 * seconds[i]:.4g}',
            f'{case.size[0] / seconds[i]:.4g}',
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
        if args.task == 'training' and form not in FOR_TRAINING:
            raise UsageError(f'form {form} cannot be trained: leave it out.')
        if form in PACKAGES:
            need(f'form {form}', *PACKAGES[form])
            if args.device != 'cpu':
                raise UsageError(f'form {form} runs on the CPU here: add --device cpu.')
        if form not in OF_ANY_MODEL and others:
            raise UsageError(
                f'{others[0]} has no form {form}: choose of {", ".join(OF_ANY_MODEL)}.'
            )


def main() -> None:
    args = parse_args()
    args.forms = args.forms or DEFAULT_FORMS[args.task]
    check(args)
    cases = [make_case(args, (size, 3, *args.shape), args.task) for size in args.batch_size]
    log_errors_only()
    print(
        f'{describe_machine(args.device)}, {args.precision}, {args.layout}, images of '
        f'{args.shape[0]}x{args.shape[1]}, medians of {args.rounds}\n',
        flush=True,
    )
    rows = []

    def cells() -> Iterator[List[str]]:
        for case in cases:
            for name in args.models:
                found = benchmark(name, args.forms, case, args.rounds)
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
