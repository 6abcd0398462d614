"""What trained networks score in each form and runtime, and what 8 bits cost them.

Spread is how uneven the ranges of fused weights are: the largest range of a layer's output channels
through the median one, in the median layer and in the worst. One range per tensor wastes the bits
of the other channels; OpenVINO's int8 has one per channel.
"""

import argparse
import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Dict, Iterator, List, Tuple

from mmcv.cnn import fuse_conv_bn
from torch import nn

from mmvanilla import switch_to_deploy
from mmvanilla.cli.exports import FORMATS
from mmvanilla.cli.measuring import TestData
from mmvanilla.cli.options import log_errors_only, one_sentence_errors, read_config
from mmvanilla.cli.running import build_model, drop_pretrained, use_safe_loading
from mmvanilla.cli.tables import print_table
from mmvanilla.deployment.exporting import Exporter, describe, need
from mmvanilla.deployment.fused_checkpoint import inference_config
from mmvanilla.errors import UsageError
from mmvanilla.models.loading.weights import load_weights, read_state_dict

HEAD = (
    *('network', 'metric', 'torch, training form', 'torch, fused', 'onnxruntime'),
    *('OpenVINO float32', 'bfloat16', 'int8', 'int8, one range per tensor'),
    *('spread: median', 'largest'),
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'networks', nargs='+', help='pairs of a config and a checkpoint in training form'
    )
    parser.add_argument('--calibration-images', type=int, default=300)
    args = parser.parse_args()
    if len(args.networks) % 2:
        parser.error('give a checkpoint after each config')
    return args


def spread(network: nn.Module) -> Tuple[float, float]:
    """How uneven the ranges of weights are in the median convolution, and in the worst."""
    ratios = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.out_channels > 1:
            ranges = module.weight.detach().abs().flatten(1).amax(1)
            ratios.append((ranges.max() / ranges.median()).item())
    return sorted(ratios)[len(ratios) // 2], max(ratios)


def measure(config: str, checkpoint: str, calibration_images: int) -> Iterator[List[str]]:
    """One row of ``HEAD`` for each metric of a network."""
    from mmvanilla.deployment.exported_network import load_exported
    from mmvanilla.deployment.openvino_files import to_openvino, write_openvino
    from mmvanilla.deployment.quantization import quantize

    cfg = read_config(config)
    drop_pretrained(cfg)
    network = build_model(copy.deepcopy(cfg)).eval()
    load_weights(network, read_state_dict(checkpoint), checkpoint)
    fused = fuse_conv_bn(switch_to_deploy(network))
    cfg = inference_config(cfg)
    data = TestData(cfg)
    forms: List[Dict[str, float]] = [data.measure(network), data.measure(fused)]
    with TemporaryDirectory() as folder:
        metadata = describe(cfg, fused, data.dataset.metainfo.get('classes', ()), inside=False)
        onnx = Path(folder, 'network.onnx')
        Exporter(fused, cfg, data.samples(1)[0], metadata).onnx(onnx)
        forms.append(data.measure(load_exported(onnx, cfg)))
        for precision in ('float32', 'bfloat16'):
            path = Path(folder, f'{precision}.xml')
            metadata['precision'] = precision
            write_openvino(to_openvino(onnx, metadata), path)
            forms.append(data.measure(load_exported(path, cfg)))
        for per_channel in (True, False):
            model = load_exported(Path(folder, 'float32.xml'), cfg)
            samples = data.samples(calibration_images)
            forms.append(quantize(model, samples, data.measure, 1.0, per_channel)[2])
    for name in forms[0]:
        yield [
            *(Path(config).stem, name.split('/')[-1]),
            *(f'{form[name]:.3f}' for form in forms),
            *(f'{ratio:.1f}' for ratio in spread(fused)),
        ]


def main() -> None:
    args = parse_args()
    need('this', *FORMATS['int8'])
    log_errors_only()
    use_safe_loading()
    pairs = list(zip(args.networks[::2], args.networks[1::2]))
    for _, checkpoint in pairs:
        if not Path(checkpoint).is_file():
            raise UsageError(f'checkpoint {checkpoint} does not exist: check the path.')
    rows = (row for pair in pairs for row in measure(*pair, args.calibration_images))
    print_table(HEAD, rows)


if __name__ == '__main__':
    with one_sentence_errors():
        main()
