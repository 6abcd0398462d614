"""Networks as files for other runtimes: by mmdeploy from images to boxes, or as torch programs."""

import copy
import json
import warnings
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable, Iterator, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from torch import Tensor, nn

from ..compatibility import export_program, onnx_by_tracing
from ..config import scope_of
from ..errors import UsageError, reason
from ..model_index import find_root
from ..version import __version__

# mmdeploy's settings, in configs/deploy, by package.
SETTINGS = dict(mmdet='detection', mmpretrain='classification', mmseg='segmentation')
# How to install what is not installed by its name alone.
INSTALL = dict(mmdeploy='aenum multiprocess; pip install --no-deps mmdeploy')
OLDEST_OPSET, OPSET, NEWEST_OPSET = 16, 17, 20  # grid_sample; the default; torch's exporter


def need(option: str, *packages: str) -> None:
    """Raises UsageError if a package that an option needs is not installed."""
    for package in packages:
        if find_spec(package) is None:
            how = INSTALL.get(package, package)
            raise UsageError(f'{option} needs {package}: pip install {how}.')


def quiet_mmdeploy() -> None:
    """Leaves only errors of mmdeploy's messages, which are about its other runtimes."""
    if not MMLogger.check_instance_created('mmdeploy'):
        MMLogger.get_instance('mmdeploy', log_level='ERROR')
        MMLogger._instance_dict.move_to_end('mmdeploy', last=False)  # else it became the current


def check_scope(cfg: Config) -> None:
    """Raises UsageError for networks of packages that there are no settings for."""
    scope = scope_of(cfg)
    if scope not in SETTINGS:
        raise UsageError(
            f'exporting takes networks of {", ".join(SETTINGS)}, but this config is for {scope}.'
        )


def deploy_settings(cfg: Config, with_masks: bool) -> Config:
    """mmdeploy's settings for a config's network.

    Raises:
        UsageError: as ``check_scope``.
    """
    check_scope(cfg)
    quiet_mmdeploy()
    name = 'instance_segmentation' if with_masks else SETTINGS[scope_of(cfg)]
    return Config.fromfile(find_root() / f'configs/deploy/{name}.py')


class Exporter:
    """Writes a fused network to files for other runtimes.

    Args:
        network: The network, in eval mode, on the CPU.
        cfg: Its config.
        sample: Data of its test pipeline, for tracing.
        metadata: What the files are to say of themselves, as ``describe`` returns it.
        opset: The version of ONNX's operators.
        fixed_size: Whether files are for single images of the sample's size.
    """

    def __init__(
        self,
        network: nn.Module,
        cfg: Config,
        sample: dict,
        metadata: dict,
        opset: int = OPSET,
        fixed_size: bool = False,
    ) -> None:
        self.network, self.metadata = network, metadata
        self.settings = deploy_settings(cfg, getattr(network, 'with_mask', False))
        self.settings.onnx_config.opset_version = opset
        self.fixed_size = fixed_size
        if fixed_size:
            self.settings.onnx_config.dynamic_axes = None
        self.inputs = self._preprocess([sample])
        from mmdeploy.apis.utils import build_task_processor

        build_task_processor(copy.deepcopy(cfg), self.settings, 'cpu')  # imports what it rewrites

    def onnx(self, path: Path) -> None:
        """Writes an ONNX file."""
        import onnx
        from mmdeploy.apis.onnx import export
        from mmdeploy.utils import get_dynamic_axes

        settings = self.settings.onnx_config
        names = [*settings.input_names, *settings.output_names]
        with TemporaryDirectory() as folder:
            self._trace(
                export,
                backend='onnxruntime',
                output_path_prefix=f'{folder}/network',
                dynamic_axes=get_dynamic_axes(self.settings, names),
                keep_initializers_as_inputs=False,
                **{k: settings[k] for k in ('input_names', 'output_names', 'opset_version')},
            )
            network = onnx.load(f'{folder}/network.onnx')
        onnx.helper.set_model_props(network, {k: json.dumps(v) for k, v in self.metadata.items()})
        onnx.save(network, path)

    def torchscript(self, path: Path) -> None:
        """Writes a TorchScript file."""
        from mmdeploy.apis.torch_jit import trace

        program = self._trace(trace, backend='torchscript', check_trace=False)
        torch.jit.save(program, path, _extra_files={'mmvanilla.json': json.dumps(self.metadata)})

    def program(self, path: Path) -> None:
        """Writes a program of ``torch.export``, whose outputs are those of ``mode='tensor'``."""
        network, images = self._to_export()
        with self._failing_in_one_sentence('torch.export'):
            program = export_program(_Raw(network), images, self.fixed_size)
        extra = {'mmvanilla.json': json.dumps(self.metadata)}
        torch.export.save(program, path, extra_files=extra)

    def error_of_program(self, path: Path, batches: Sequence[Sequence[dict]]) -> float:
        """The largest difference of such a file's outputs from torch's, of the largest output."""
        from torch.utils._pytree import tree_leaves

        raw, errors = _Raw(self._to_export()[0]), []
        with self._failing_in_one_sentence('torch.export'), torch.inference_mode():
            program = torch.export.load(path).module()
            for samples in batches:
                images = self._preprocess(samples)['inputs']
                if self.metadata['normalized_inside']:
                    images = denormalize(images, self.metadata)
                pairs = zip(tree_leaves(program(images)), tree_leaves(raw(images)))
                errors += [((a - b).abs().max() / b.abs().max()).item() for a, b in pairs]
        return max(errors)

    def _preprocess(self, samples: Sequence[dict]) -> dict:
        return self.network.data_preprocessor(pseudo_collate(copy.deepcopy(list(samples))), False)

    def _to_export(self) -> Tuple[nn.Module, Tensor]:
        """A copy of the network that normalizes images if asked to, and images for it."""
        network, images = copy.deepcopy(self.network), self.inputs['inputs']
        if self.metadata['normalized_inside']:
            mean, std = _statistics(self.metadata)
            network.register_forward_pre_hook(lambda _, args: ((args[0] - mean) / std,))
            images = denormalize(images, self.metadata)
        return network, images

    def _trace(self, tracer: Callable, **kwargs: Any) -> Any:
        """Calls one of mmdeploy's tracers, which change the network, with a copy of it."""
        from mmdeploy.apis.core.pipeline_manager import no_mp

        from . import rewriters

        rewriters.SIZES.clear()  # of a network that was traced before
        network, images = self._to_export()
        samples = copy.deepcopy(self.inputs['data_samples'])
        with self._failing_in_one_sentence('mmdeploy'), no_mp(), onnx_by_tracing():
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # of the tracer, about sizes; results are compared
                return tracer(
                    network,
                    images,
                    input_metas=dict(data_samples=samples, mode='predict'),
                    context_info=dict(deploy_cfg=copy.deepcopy(self.settings)),
                    **kwargs,
                )

    @contextmanager
    def _failing_in_one_sentence(self, exporter: str) -> Iterator[None]:
        try:
            yield
        except OSError:  # a full disk
            raise
        except Exception as error:  # heads fail in many ways
            raise UsageError(
                f'{exporter} cannot export this {type(self.network).__name__} ({reason(error)}): '
                'leave the format out, or choose another head.'
            ) from error


class _Raw(nn.Module):
    """A network of OpenMMLab from images to tensors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return self.network(images, mode='tensor')


def describe(cfg: Config, network: nn.Module, classes: Sequence[str], inside: bool) -> dict:
    """What a file says of itself: how to prepare images, and what labels mean.

    Args:
        cfg: The network's config for inference.
        network: The network with its data preprocessor.
        classes: The names of the classes, in the order of labels.
        inside: Whether the file normalizes images itself.
    """
    preprocessor = network.data_preprocessor
    normalizes = getattr(preprocessor, '_enable_normalize', False)
    coders = (getattr(module, 'bbox_coder', None) for module in network.modules())
    swaps = ('_channel_conversion', 'channel_conversion', 'to_rgb')
    return dict(
        classes=list(classes),
        pipeline=cfg.test_dataloader.dataset.pipeline,
        channel_order='RGB' if any(getattr(preprocessor, n, False) for n in swaps) else 'BGR',
        mean=preprocessor.mean.flatten().tolist() if normalizes else [0.0],
        std=preprocessor.std.flatten().tolist() if normalizes else [1.0],
        normalized_inside=inside,
        pad_size_divisor=getattr(preprocessor, 'pad_size_divisor', 1),
        cuts_boxes=any(getattr(coder, 'clip_border', False) for coder in coders),
        config=cfg.pretty_text,
        mmvanilla_version=__version__,
    )


def denormalize(images: Tensor, metadata: dict) -> Tensor:
    """Images (N, C, H, W) as they were before they were normalized."""
    mean, std = _statistics(metadata)
    return images * std + mean


def _statistics(metadata: dict) -> Tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, (C, 1, 1)."""
    return tuple(torch.tensor(metadata[name]).view(-1, 1, 1) for name in ('mean', 'std'))
