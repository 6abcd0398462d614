"""Networks in 8 bits, by nncf: calibrated on images, and as accurate as they are asked to be."""

import logging
from statistics import mean
from typing import Any, Callable, Dict, List, Sequence, Tuple

import nncf
import openvino
from nncf.quantization.advanced_parameters import QuantizationParameters
from torch import nn

from .agreement import predict
from .openvino_files import compile_network, describe, read_metadata


def quantize(
    model: nn.Module,
    samples: Sequence[dict],
    measure: Callable[[nn.Module], Dict[str, float]],
    tolerance: float,
    per_channel: bool = True,
) -> Tuple[openvino.Model, Dict[str, float], Dict[str, float]]:
    """The network of an OpenVINO file with 8-bit weights and activations.

    Activations have one range for each tensor. If the metrics fall by more than the tolerance, the
    layers that cost most of it go back to float32, one after the other.

    Args:
        model: The file as a network of OpenMMLab, as ``load_exported`` returns it.
        samples: Data of the test pipeline; the ranges of activations are measured on them.
        measure: The metrics of such a network, the larger the better.
        tolerance: By how much their mean may fall.
        per_channel: Whether weights have a range for each output channel, or one for each tensor.

    Returns:
        The quantized network, and the metrics before and after.
    """
    images: List[dict] = []
    hook = model.wrapper.register_forward_pre_hook(
        lambda _, args: images.append({name: x.numpy() for name, x in args[0].items()})
    )
    for sample in samples:
        predict(model, [sample])
    hook.remove()

    def measure_compiled(compiled: openvino.CompiledModel) -> Dict[str, float]:
        model.wrapper.compiled = compiled
        return measure(model)

    def mean_of(compiled: openvino.CompiledModel, _: Any) -> Tuple[float, None]:
        return mean(measure_compiled(compiled).values()), None

    float32, data = model.wrapper.network, nncf.Dataset(images)
    before = measure(model)
    nncf.set_log_level(logging.ERROR)
    number = len(images)
    ranges = nncf.AdvancedQuantizationParameters(
        weights_quantization_params=QuantizationParameters(per_channel=per_channel)
    )
    quantized = nncf.quantize(float32, data, subset_size=number, advanced_parameters=ranges)
    after = measure_compiled(compile_network(quantized))
    if mean(before.values()) - mean(after.values()) > tolerance:
        quantized = nncf.quantize_with_accuracy_control(
            *(float32, data, data, mean_of),
            max_drop=tolerance,
            subset_size=number,
            advanced_quantization_parameters=ranges,
        )
        after = measure_compiled(compile_network(quantized))
    describe(quantized, dict(read_metadata(float32), precision='int8'))
    return quantized, before, after
