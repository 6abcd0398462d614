"""Converts a checkpoint of the authors into one of an mmpretrain classifier with our modules.

tools/test.py, load_from and init_cfg take the authors' files as they are; a converted one is for
programs that do not know them. The source may be in training or deploy form.
"""

import argparse
from pathlib import Path
from typing import Dict, Optional

import torch
from torch import Tensor, nn

from mmvanilla import UsageError, VanillaNet, __version__, switch_to_deploy
from mmvanilla.checkpoint import get_state_dict, load_checkpoint, replace_when_whole
from mmvanilla.cli.options import one_sentence_errors
from mmvanilla.models.deep_conv import DeepConv
from mmvanilla.models.loading.official import convert_official_state_dict, is_official_state_dict
from mmvanilla.models.loading.weights import load_weights


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help="the authors' file, or its address")
    parser.add_argument('dst', help='file to write')
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        '--ema',
        action='store_true',
        default=None,
        help='the averaged weights; this is the default if the file has any',
    )
    weights.add_argument('--no-ema', action='store_false', dest='ema', help='the trained weights')
    parser.add_argument('--deploy', action='store_true', help='write the fused network')
    return parser.parse_args()


def pick_weights(checkpoint: dict, ema: Optional[bool], path: str) -> Dict[str, Tensor]:
    """The weights asked for, in the authors' names."""
    if ema is not None:
        key = 'model_ema' if ema else 'model'
        if not isinstance(checkpoint.get(key), dict):
            raise UsageError(
                f'checkpoint {path} has no {key!r}: leave out {"--ema" if ema else "--no-ema"}.'
            )
        checkpoint = checkpoint[key]
    weights = get_state_dict(checkpoint)
    if not is_official_state_dict(weights):
        raise UsageError(f"checkpoint {path} is not one of the authors' VanillaNet.")
    if any(key.startswith('backbone.') for key in weights):
        raise UsageError(
            f'checkpoint {path} is of a detector: tools/test.py and load_from take it as it is.'
        )
    return weights


class Classifier(nn.Module):
    """The backbone and the head, with the names that they have in an mmpretrain classifier."""

    def __init__(self, backbone: VanillaNet, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Module()
        self.head.conv = DeepConv(
            backbone.out_channels[-1], num_classes, mid_channels=num_classes, final_norm=False
        )


def build_network(weights: Dict[str, Tensor]) -> Classifier:
    """A network with the sizes of converted weights, but without the weights."""
    blocks = len({key.split('.')[2] for key in weights if key.startswith('backbone.blocks.')})
    last = 'conv' if 'backbone.stem.conv.conv.weight' in weights else 'conv2'
    layers = ['stem', *(f'blocks.{i}' for i in range(blocks))]
    channels = [len(weights[f'backbone.{layer}.conv.{last}.weight']) for layer in layers]
    num_classes = len(weights[f'head.conv.{last}.weight'])
    backbone = VanillaNet(
        dict(channels=channels, strides=[1] * blocks),  # strides and pooling have no weights
        act_num=weights['backbone.stem.act.conv.weight'].shape[-1] // 2,
        out_indices=(0,),
    )
    return Classifier(backbone, num_classes)


def load_network(weights: Dict[str, Tensor], path: str) -> nn.Module:
    """The network of converted weights; raises UsageError if some are missing."""
    try:
        network = build_network(weights)
    except KeyError as error:
        raise UsageError(f'checkpoint {path} is incomplete: {error.args[0]} is missing.') from None
    load_weights(network, weights, path, strict=True)
    return network


def main() -> None:
    args = parse_args()
    if Path(args.dst).is_dir() or Path(args.dst).resolve() == Path(args.src).resolve():
        raise UsageError(f'{args.dst} would be overwritten: name a new file.')
    official = pick_weights(load_checkpoint(args.src), args.ema, args.src)
    network = load_network(convert_official_state_dict(official), args.src)
    if args.deploy:
        switch_to_deploy(network, inplace=True)
    weights = dict(network.state_dict())
    with replace_when_whole(args.dst) as temporary:
        torch.save(dict(meta=dict(mmvanilla_version=__version__), state_dict=weights), temporary)
    form = network.backbone.stem.conv.form.replace('deep', 'training')
    print(f'Wrote {args.dst}, in {form} form.')


if __name__ == '__main__':
    with one_sentence_errors():
        main()
