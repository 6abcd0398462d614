"""Fuses a trained network and writes what inference needs: checkpoint, config, other formats.

The checkpoint may be in any form, at λ = 1; the authors' files are taken as they are.
"""

import argparse
import copy
from pathlib import Path
from typing import Optional

from mmvanilla import switch_to_deploy
from mmvanilla.checkpoint import check_writable, load_checkpoint, replace_when_whole
from mmvanilla.cli.exports import Exports, add_export_options, check_export, wanted_formats
from mmvanilla.cli.options import add_cfg_options, config_file, one_sentence_errors, read_config
from mmvanilla.cli.running import build_model, drop_pretrained, use_safe_loading
from mmvanilla.deployment.fused_checkpoint import inference_config, save_fused
from mmvanilla.errors import UsageError
from mmvanilla.models.folding.network import check_fused
from mmvanilla.models.loading.names import own_names
from mmvanilla.models.loading.weights import load_weights


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', type=config_file, help='config file that the network was trained with'
    )
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('out', type=Path, help='folder for the files, named after the config')
    add_cfg_options(parser)
    add_export_options(parser)
    return parser.parse_args()


def find_classes(meta: dict) -> Optional[dict]:
    """What a checkpoint says about its data set, also in mmdet 2.x's format; None if nothing."""
    if 'CLASSES' in meta:
        return dict(classes=meta['CLASSES'])
    return meta.get('dataset_meta')


def main() -> None:
    args = parse_args()
    cfg = read_config(args.config, args.cfg_options)
    stem = args.out / Path(args.config).stem
    weights, config = (stem.with_name(stem.name + suffix) for suffix in ('.pth', '.py'))
    for path in (weights, config):
        if path.resolve() in (Path(args.config).resolve(), Path(args.checkpoint).resolve()):
            raise UsageError(f'{path} would be overwritten: name another folder.')
    if config.exists() and 'train_dataloader' in config.read_text(encoding='utf-8'):
        raise UsageError(f'{config} is the config of a training: name another folder.')
    check_writable(args.out, is_folder=True)
    check_export(args, cfg, stem)
    use_safe_loading()
    drop_pretrained(cfg)
    checkpoint = load_checkpoint(args.checkpoint)
    meta = checkpoint.get('meta') or {}
    network = build_model(copy.deepcopy(cfg))  # some models change it
    load_weights(network, own_names(checkpoint), args.checkpoint)
    fused = switch_to_deploy(network.eval())
    check_fused(network, fused)
    cfg = inference_config(cfg)
    cfg.work_dir = str(args.out / 'test')  # not that of the training config, which has its name
    lines = Exports(fused, cfg, args).write(stem) if wanted_formats(args) else []
    save_fused(weights, fused, cfg, find_classes(meta))
    with replace_when_whole(config) as temporary:
        temporary.write_text(cfg.pretty_text, encoding='utf-8')
    print(f'Wrote {weights} and {config}.')
    for line in lines:
        print(f'Wrote {line}.')


if __name__ == '__main__':
    with one_sentence_errors():
        main()
