"""Counts parameters, multiply-accumulates and layers of the models of one or more configs.

Prints a Markdown table; with --deploy also the paper's numbers (Table 4) for the models in it.
"""

import argparse
from collections import Counter
from math import prod
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.analysis.jit_handles import get_shape
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mmvanilla import VanillaNet, switch_to_deploy
from mmvanilla.cli.options import (
    add_cfg_options,
    config_file,
    log_errors_only,
    one_sentence_errors,
    read_config,
)
from mmvanilla.cli.running import image_channels
from mmvanilla.cli.tables import print_table
from mmvanilla.config import scope_of
from mmvanilla.model_index import find_root
from mmvanilla.models.folding.foldable import named_foldables
from mmvanilla.models.folding.network import deep_convs

HEAD = ['config', 'image', 'parameters (M)', 'MACs (G)', 'depth']
OF_PAPER = ['paper: parameters (M)', 'paper: FLOPs (G)', 'paper: depth']
# mmengine's names of matrix products, and of those among them that are of two activations
OF_ATTENTION = ('matmul', 'bmm', 'baddbmm', 'scaled_dot_product_attention')
PRODUCTS = ('conv', 'linear', 'addmm', 'mm', 'einsum', *OF_ATTENTION)
SHAPES = {'mmdet': (1280, 800), 'mmseg': (512, 512)}  # others 224x224


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', type=config_file, nargs='+', help='config files')
    parser.add_argument('--deploy', action='store_true', help='count the fused network')
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        help='height and width of the image, or one number; by default 224, for detectors 1280 800 '
        'as in the paper, for segmentors 512',
    )
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.shape and len(args.shape) > 2:
        parser.error('--shape takes a height and a width')
    return args


class _Pass(nn.Module):
    """A pass through a model as a function of the images alone, as tracing needs it."""

    def __init__(self, model: nn.Module, **inputs: Any) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs

    def forward(self, images: Tensor) -> Any:
        return self.model(images, **self.inputs)


def _attention_macs(inputs: List[Any], outputs: List[Any]) -> int:
    queries, keys, values = map(get_shape, inputs[:3])  # (..., length, channels) each
    return prod(queries[:-1]) * keys[-2] * (queries[-1] + values[-1])


def _matmul_macs(inputs: List[Any], outputs: List[Any]) -> int:
    return prod(get_shape(outputs[0])) * get_shape(inputs[0])[-1]  # batches may be broadcast


def _baddbmm_macs(inputs: List[Any], outputs: List[Any]) -> int:
    return _matmul_macs(inputs[1:], outputs)


def _einsum_macs(inputs: List[Any], outputs: List[Any]) -> int:
    """One for each combination of indices."""
    terms = inputs[0].toIValue().replace(' ', '').split('->')[0].split(',')
    sizes: Dict[str, int] = {}
    for term, shape in zip(terms, map(get_shape, inputs[1].node().inputs())):
        others = ascii_uppercase[: len(shape) - len(term.replace('...', ''))][::-1]
        for index, size in zip(term.replace('...', others), shape):
            sizes[index] = max(size, sizes.get(index, 1))
    return prod(sizes.values())


# For products that mmengine does not count, or only roughly.
HANDLES = {
    'aten::baddbmm': _baddbmm_macs,
    'aten::einsum': _einsum_macs,
    'aten::matmul': _matmul_macs,
    'aten::scaled_dot_product_attention': _attention_macs,
}


def count_macs(model: nn.Module, images: Tensor, **inputs: Any) -> Dict[str, Counter]:
    """Multiply-accumulates of convolutions and matrix products in a pass, as is usual.

    Those inside autograd functions are not seen.

    Args:
        model: A model of any OpenMMLab package.
        images: Its ``inputs``.
        inputs: Its other arguments.

    Returns:
        Module name ('' for the whole model) -> operator -> number.
    """
    counter = FlopAnalyzer(_Pass(model, **inputs), (images,))
    counter.set_op_handle(**HANDLES)
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad():
        counts = counter.by_module_and_operator()
    return {
        name[len('model.') :]: Counter({op: n for op, n in found.items() if op in PRODUCTS})
        for name, found in counts.items()
        if name  # the pass itself
    }


def count(cfg: Config, shape: Tuple[int, int], deploy: bool) -> Dict[str, int]:
    """Parameters, multiply-accumulates of one image, and deep convolutions of a config's model.

    The multiply-accumulates are those of convolutions and matrix products, as is usual. Those that
    publications leave out are also returned separately: in series activations, and in attention's
    products of two activations.

    Args:
        cfg: A config of any OpenMMLab package.
        shape: Height and width of the image.
        deploy: Whether to count the fused network.
    """
    scope = scope_of(cfg)
    init_default_scope(scope)
    model = MODELS.build(cfg.model).eval()
    if deploy:
        switch_to_deploy(model, inplace=True)
    inputs = {}
    if scope == 'mmdet':
        from mmdet.structures import DetDataSample

        meta = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape)
        inputs['data_samples'] = [DetDataSample(metainfo=dict(meta, scale_factor=(1.0, 1.0)))]
    images = torch.rand(1, image_channels(model), *shape)
    for module in model.modules():
        if isinstance(module, VanillaNet):
            module.check_images(images)
    counts = count_macs(model, images, **inputs)
    return dict(
        parameters=sum(p.numel() for p in model.parameters()),
        macs=sum(counts[''].values()),
        series_macs=sum(
            sum(counts[name.rstrip('.')].values())
            for name, layer in named_foldables(model)
            if 'deep' not in layer.forms
        ),
        attention_macs=sum(counts[''][operator] for operator in OF_ATTENTION),
        depth=sum(1 for _ in deep_convs(model)),
    )


def find_paper_figures(config: Path) -> Dict[str, int]:
    """The paper's figures of a config's model, from the metafile; empty if it has none."""
    metafile = find_root() / 'configs/imagenet/metafile.yml'
    for model in load(metafile)['Models'] if metafile.exists() else []:
        if Path(model['Config']).name == config.name:
            return model['Metadata']
    return {}


def make_rows(
    configs: List[Path], shape: Optional[Tuple[int, int]], deploy: bool, options: Optional[dict]
) -> Iterator[List[str]]:
    """A row of the table for each config."""
    for path in configs:
        cfg = read_config(path, options)
        size = shape or SHAPES.get(scope_of(cfg), (224, 224))
        found = count(cfg, size, deploy)
        row = [
            path.stem,
            f'{size[0]}x{size[1]}',
            f'{found["parameters"] / 1e6:.2f}',
            f'{found["macs"] / 1e9:.2f}',
            str(found['depth']),
        ]
        if deploy:
            as_published = size == (224, 224) and not options
            paper = find_paper_figures(path) if as_published else {}
            row += [
                f'{paper["Parameters"] / 1e6:.1f}' if paper else '',
                f'{paper["FLOPs"] / 1e9:.1f}' if paper else '',
                str(paper.get('Depth', '')),
            ]
        yield row


def main() -> None:
    args = parse_args()
    shape = tuple(args.shape * 2)[:2] if args.shape else None
    log_errors_only()
    configs = [Path(path) for path in args.config]
    # All of them first, so that errors are raised before the head is printed.
    rows = list(make_rows(configs, shape, args.deploy, args.cfg_options))
    print_table(HEAD + OF_PAPER if args.deploy else HEAD, rows)


if __name__ == '__main__':
    with one_sentence_errors():
        main()
