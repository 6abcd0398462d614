"""Converts a checkpoint of the authors into one of an mmpretrain classifier with our modules.

tools/test.py, load_from and init_cfg take the authors' files as they are; a converted one is for
programs that do not know them. The source may be in training or deploy form.
"""

import argparse
from typing import Dict, Optional

import torch
from torch import Tensor, nn

from mmvanilla import UsageError, VanillaNet, __version__, switch_to_deploy
from mmvanilla.checkpoint import get_state_dict, load_checkpoint, replace_when_whole
from mmvanilla.engine import launch
from mmvanilla.models import DeepConv
from mmvanilla.models.official import convert_official_state_dict, is_official_state_dict
from mmvanilla.models.pretrained import form_of


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help="the authors' file, or its address")
    parser.add_argument('dst', help='file to write')
    parser.add_argument(
        '--ema',
        action=argparse.BooleanOptionalAction,
        help='take the averaged weights, or those that were trained; averaged if there are any',
    )
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
    return weights


def fuse(weights: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Converted weights in training form to deploy form."""
    blocks = 1 + max(int(key.split('.')[2]) for key in weights if '.blocks.' in key)
    layers = ['stem', *(f'blocks.{i}' for i in range(blocks))]
    channels = [len(weights[f'backbone.{layer}.conv.conv2.weight']) for layer in layers]
    num_classes, in_channels = weights['head.conv.conv1.weight'].shape[:2]
    model = nn.Module()
    # The strides and the pooling have no weights.
    model.backbone = VanillaNet(
        dict(channels=channels, strides=[1] * blocks),
        act_num=weights['backbone.stem.act.conv.weight'].shape[-1] // 2,
        out_indices=(0,),
    )
    model.head = nn.Module()
    model.head.conv = DeepConv(in_channels, num_classes, mid_channels=num_classes, final_norm=False)
    model.load_state_dict(weights)
    return dict(switch_to_deploy(model, inplace=True).state_dict())


def main() -> None:
    args = parse_args()
    official = pick_weights(load_checkpoint(args.src), args.ema, args.src)
    weights = convert_official_state_dict(official)
    if args.deploy and form_of(weights) == 'deep':
        weights = fuse(weights)
    with replace_when_whole(args.dst) as temporary:
        torch.save(dict(meta=dict(mmvanilla_version=__version__), state_dict=weights), temporary)
    print(f'Wrote {args.dst}, in {"training" if form_of(weights) == "deep" else "deploy"} form.')


if __name__ == '__main__':
    with launch.one_sentence_errors():
        main()
