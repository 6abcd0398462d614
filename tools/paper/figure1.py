"""Figure 1 of the paper: draws the VanillaNet of a classification config, from the built model.

Each box is a feature map: its height stands for the map's, its length for the number of channels.
"""

import argparse
from pathlib import Path
from typing import List, NamedTuple, Tuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from mmvanilla import UsageError, VanillaNet
from mmvanilla.cli.figures import figure_file, write_figure
from mmvanilla.cli.options import (
    add_cfg_options,
    config_file,
    log_errors_only,
    one_sentence_errors,
    read_config,
)
from mmvanilla.cli.running import build_model
from mmvanilla.compatibility import meta_device
from mmvanilla.config import is_a, scope_of
from mmvanilla.models.shortcut import ShortcutBlock

COLOURS = ('C7', 'C0', 'C2', 'C1', 'C3')  # of the image, then by stage
HEIGHT = 0.55  # of a map of one pixel; heights grow with the square root
LENGTH = 0.0009  # of one channel
SLANT = 0.35  # how far the boxes go back, relative to their height
SLOT = 2.9  # least width of a layer, for its text
GAP = 0.4


class Layer(NamedTuple):
    """A feature map, and what it comes from."""

    operations: str
    channels: int
    height: int
    width: int
    stage: int  # 0 for the image, from 1 for the backbone's stages


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', type=config_file, help='config of a classifier')
    parser.add_argument('--out', type=figure_file, required=True, help='file (.png, .pdf, .svg)')
    parser.add_argument('--shape', type=int, default=224, help='side of the image')
    add_cfg_options(parser)
    return parser.parse_args()


def describe(block: nn.Module) -> str:
    """The operations of a layer of VanillaNet, one per line."""
    conv = block.conv.conv1 if block.conv.is_deep else block.conv.conv
    size, stride = conv.kernel_size[0], conv.stride[0]
    lines = [f'conv {size}x{size}' + (f' /{stride}' if stride > 1 else '')]
    if isinstance(block.pool, nn.MaxPool2d):
        lines.append(f'max pool /{block.pool.kernel_size}')
    elif isinstance(block.pool, nn.AdaptiveMaxPool2d):
        lines.append(f'max pool to {block.pool.output_size}')
    lines.append(f'series act. {block.act.conv.padding[0]}')
    if isinstance(block, ShortcutBlock):
        lines += ['shortcut', block.place]
    return '\n'.join(lines)


def list_layers(backbone: VanillaNet, side: int) -> List[Layer]:
    """The image and the feature maps of a VanillaNet, in their order."""
    layers = [Layer('image', 3, side, side, 0)]

    def note(block: nn.Module, _: Tuple, out: torch.Tensor) -> None:
        stage = backbone.stage_of_layer[len(layers) - 1] + 1
        layers.append(Layer(describe(block), *out.shape[1:], stage))

    for block in (backbone.stem, *backbone.blocks):
        block.register_forward_hook(note)
    backbone.eval()
    with torch.no_grad():
        backbone(next(backbone.parameters()).new_empty(1, 3, side, side))
    return layers


def draw_box(axis: Axes, left: float, length: float, height: float, colour: str) -> None:
    """A box that stands on y = 0 and goes back to the upper right."""
    back = SLANT * height
    front = [(left, 0), (left + length, 0), (left + length, height), (left, height)]
    top = [front[3], front[2], (left + length + back, height + back), (left + back, height + back)]
    side = [front[1], (left + length + back, back), top[2], front[2]]
    for face, alpha in ((front, 0.75), (top, 0.5), (side, 0.35)):
        axis.fill(*zip(*face), facecolor=colour, alpha=alpha, edgecolor='black', linewidth=0.6)


def draw(layers: List[Layer], title: str, classes: int, path: Path) -> None:
    """Draws the layers from left to right, then the classifier.

    Args:
        layers: As ``list_layers`` returns them.
        title: The title.
        classes: Number of classes.
        path: The picture's file.
    """
    figure = Figure((1.7 * len(layers), 4.2))
    axis = figure.subplots()
    left = 0.0
    for layer in layers:
        height, length = HEIGHT * layer.height**0.5, max(LENGTH * layer.channels, 0.05)
        draw_box(axis, left, length, height, COLOURS[layer.stage])
        size = f'{layer.channels}\n{layer.height}x{layer.width}'
        axis.text(left + length / 2, -0.25, size, ha='center', va='top', fontsize=9)
        axis.text(
            left + length / 2,
            -1.9,
            layer.operations,
            ha='center',
            va='top',
            fontsize=8,
            style='italic',
        )
        left += max(length + SLANT * height, SLOT) + GAP
    end = f'average pool\nconv 1x1\n{classes} classes'
    axis.text(left, 0.5, end, ha='left', va='center', fontsize=9)
    axis.set(xlim=(-1.5, left + SLOT), title=title)
    axis.set_ylim(-3.4, None)
    axis.axis('off')
    axis.set_aspect('equal')
    write_figure(figure, path, bbox_inches='tight')


def main() -> None:
    args = parse_args()
    log_errors_only()
    cfg = read_config(args.config, args.cfg_options)
    model = cfg.get('model') or {}
    parts = [model.get(name) or {} for name in ('backbone', 'head')]
    if not is_a(parts[0], VanillaNet, scope_of(cfg)) or 'num_classes' not in parts[1]:
        raise UsageError(
            f'{args.config} is not for a classifier with a VanillaNet: give one that is.'
        )
    with meta_device():  # shapes are enough
        model = build_model(cfg)
    layers = list_layers(model.backbone, args.shape)
    # The classifier is a layer too.
    title = f'VanillaNet of {len(layers)} layers'
    draw(layers, title, model.head.num_classes, args.out)
    print(f'Wrote {args.out}.')


if __name__ == '__main__':
    with one_sentence_errors():
        main()
