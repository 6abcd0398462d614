"""Networks as OpenVINO's files, and mmdeploy's way to run them with today's OpenVINO."""

import json
from pathlib import Path
from typing import Any, Dict, Sequence

import openvino
import torch
from torch import Tensor

from .exporting import quiet_mmdeploy

quiet_mmdeploy()  # before its import
from mmdeploy.backend.base import BACKEND_MANAGERS, BaseWrapper  # noqa: E402
from mmdeploy.backend.openvino import OpenVINOManager  # noqa: E402, before ours replaces it

# OpenVINO itself takes the fastest precision of the processor, unless it is told another.
PRECISIONS = dict(bfloat16='bf16')  # else float32
PLACE = 'mmvanilla'  # of the metadata in a file


def to_openvino(path: Path, metadata: dict) -> openvino.Model:
    """An ONNX file as a network of OpenVINO with metadata."""
    network = openvino.convert_model(path)
    describe(network, metadata)
    return network


def describe(network: openvino.Model, metadata: dict) -> None:
    """Writes metadata into a network, so that its file will hold them."""
    for name, value in metadata.items():
        network.set_rt_info(json.dumps(value), [PLACE, name])


def read_metadata(network: openvino.Model) -> dict:
    """The metadata that ``describe`` wrote; empty if there is none."""
    if not network.has_rt_info(PLACE):
        return {}
    found = network.get_rt_info(PLACE).astype(dict)
    return {name: json.loads(value.value) for name, value in found.items()}


def compile_network(network: openvino.Model) -> openvino.CompiledModel:
    """Makes a network ready to run on the CPU, in the precision that its metadata say."""
    precision = PRECISIONS.get(read_metadata(network).get('precision'), 'f32')
    return openvino.compile_model(network, 'CPU', {'INFERENCE_PRECISION_HINT': precision})


def write_openvino(network: openvino.Model, path: Path) -> None:
    """Writes a network to an .xml file, and its weights beside it to a .bin file."""
    openvino.save_model(network, path, compress_to_fp16=False)


class OpenVINOWrapper(BaseWrapper):
    """Runs a network as mmdeploy wants it, from tensors by name to tensors by name."""

    def __init__(self, network: openvino.Model, output_names: Sequence[str]) -> None:
        super().__init__(list(output_names))
        self.network = network
        self.compiled = compile_network(network)

    def forward(self, inputs: Dict[str, Tensor]) -> Dict[str, Tensor]:
        outputs = self.compiled({name: x.numpy() for name, x in inputs.items()})
        return {name: torch.from_numpy(outputs[name].copy()) for name in self._output_names}


@BACKEND_MANAGERS.register('openvino')
class CurrentOpenVINOManager(OpenVINOManager):
    """In place of mmdeploy's, which needs an interface that OpenVINO removed in 2024."""

    @classmethod
    def build_wrapper(
        cls,
        backend_files: Sequence[Any],
        device: str,
        input_names: Sequence[str],
        output_names: Sequence[str],
        *args: Any,
    ) -> OpenVINOWrapper:
        return OpenVINOWrapper(openvino.Core().read_model(backend_files[0]), output_names)
