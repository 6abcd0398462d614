"""Networks as ONNX files, checked in onnxruntime before they are kept."""

import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Dict, Tuple, Union

import torch
from torch import Tensor, nn

from mmvanilla.checkpoint import replace_when_whole
from mmvanilla.cli.running import image_channels
from mmvanilla.compatibility import ONNX_EXPORTER
from mmvanilla.errors import UsageError

# What is checked: image sizes, the last no multiple of any stride, and batch sizes.
SIZES = ((224, 224), (256, 192), (171, 331))
BATCHES = (1, 2)
TOLERANCE = 1e-4  # of the largest output
OPSET = 17
HEAD_OUTPUTS = ('cls_score', 'bbox_pred')  # of a single-stage detector, one per level; then others


def check_exportable(model: nn.Module) -> None:
    """Raises UsageError if ``model`` cannot be exported, or if a package for it is missing."""
    for package in ('onnx', 'onnxruntime'):
        if find_spec(package) is None:
            raise UsageError(f'--onnx needs {package}: pip install onnx onnxruntime.')
    if not isinstance(model, _exportable_classes()):
        raise UsageError(
            f'--onnx takes classifiers of mmpretrain and single-stage detectors of mmdet, but this '
            f'is a {type(model).__name__}: leave --onnx out.'
        )
    for name, module in model.named_modules():
        if isinstance(module, (nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d)):
            if module.output_size not in (1, (1, 1)):
                raise UsageError(
                    f'{name} pools to a fixed size, which ONNX has no operator for: leave --onnx '
                    'out, or choose another arch.'
                )


def export_onnx(network: nn.Module, path: Union[str, Path]) -> float:
    """Writes a network to an ONNX file for batches and images of any size.

    The input ``images`` is what the data preprocessor returns, (N, C, H, W). A classifier's output
    is ``logits``, (N, classes); a single-stage detector's are those of its head, before boxes are
    decoded, named by level: ``cls_score_0``, ..., ``bbox_pred_0``, ...

    Args:
        network: A fused network, in eval mode, on the CPU.
        path: The file. It is written only if onnxruntime returns what torch does, at each of
            ``SIZES`` and ``BATCHES``.

    Returns:
        The largest difference found, relative to the largest output.

    Raises:
        RuntimeError: if onnxruntime returns something else.
    """
    raw = _RawOutputs(network).eval()
    images = torch.rand(2, image_channels(network), *SIZES[0])
    with torch.no_grad():
        named = {'images': images, **raw.named_outputs(images)}
    axes = {
        name: {
            0: 'batch',
            **{i: f'{name}_{"height" if i == 2 else "width"}' for i in range(2, x.dim())},
        }
        for name, x in named.items()
    }
    with replace_when_whole(path) as temporary:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of the tracer, about sizes; they are checked below
            torch.onnx.export(
                raw,
                (images,),
                str(temporary),
                input_names=['images'],
                output_names=[name for name in named if name != 'images'],
                dynamic_axes=axes,
                opset_version=OPSET,
                **ONNX_EXPORTER,
            )
        error = _largest_error(raw, temporary)
        if not error <= TOLERANCE:
            raise RuntimeError(
                f'{path} is not written: in onnxruntime its outputs differ from those of '
                f'torch by {error:.1e} of the largest.'
            )
    return error


class _RawOutputs(nn.Module):
    """A network of mmpretrain or mmdet from images to tensors, without data samples."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def named_outputs(self, images: Tensor) -> Dict[str, Tensor]:
        outputs = self.network(images, mode='tensor')
        if isinstance(outputs, Tensor):
            return {'logits': outputs}
        return {
            f'{HEAD_OUTPUTS[i] if i < len(HEAD_OUTPUTS) else f"output_{i}"}_{level}': x
            for i, levels in enumerate(outputs)
            for level, x in enumerate(levels)
        }

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        return tuple(self.named_outputs(images).values())


def _largest_error(raw: nn.Module, path: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    generator = torch.Generator().manual_seed(0)
    errors = []
    for batch in BATCHES:
        for size in SIZES:
            images = torch.rand(batch, image_channels(raw), *size, generator=generator)
            with torch.inference_mode():
                expected = raw(images)
            got = session.run(None, {'images': images.numpy()})
            for one, other in zip(got, expected):
                difference = (torch.from_numpy(one) - other).abs().max()
                errors.append((difference / other.abs().max()).item())
    return torch.tensor(errors).max().item()  # NaN if one is


def _exportable_classes() -> Tuple[type, ...]:
    """Classes of the packages that are already imported: importing one takes seconds."""
    return tuple(
        getattr(sys.modules[module], name)
        for module, name in (
            ('mmpretrain.models', 'ImageClassifier'),
            ('mmdet.models', 'SingleStageDetector'),
        )
        if module in sys.modules
    )
