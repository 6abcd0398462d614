"""Exporting a fused network in the formats that a user asks for, each checked before it is kept."""

import argparse
import io
import shutil
from contextlib import redirect_stdout
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, List

from mmengine.config import Config
from mmengine.structures import BaseDataElement
from torch import nn

from ..checkpoint import replace_when_whole
from ..compatibility import check_program_export
from ..deployment.agreement import NUM_IMAGES, TOLERANCES, compare, crop, predict
from ..deployment.exported_network import load_exported
from ..deployment.exporting import (
    NEWEST_OPSET,
    OLDEST_OPSET,
    OPSET,
    Exporter,
    check_scope,
    describe,
    need,
)
from ..errors import UsageError, reason
from .checks import check_data
from .measuring import TestData

# Options of exporting: the packages that each needs.
FORMATS = dict(
    onnx=('mmdeploy', 'onnx', 'onnxruntime'),
    openvino=('mmdeploy', 'onnx', 'openvino'),
    int8=('mmdeploy', 'onnx', 'openvino', 'nncf'),
    torchscript=('mmdeploy', 'onnx'),
    torch_export=(),
)
# What each format writes.
SUFFIXES = dict(
    onnx=('.onnx',),
    openvino=('.xml', '.bin'),
    int8=('_int8.xml', '_int8.bin'),
    torchscript=('.pt',),
    torch_export=('.pt2',),
)


def add_export_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        'other runtimes', 'files that are compared with torch on images of the test data'
    )
    group.add_argument('--onnx', action='store_true', help='from images to boxes, for onnxruntime')
    group.add_argument(
        '--openvino',
        nargs='?',
        const='float32',
        choices=['float32', 'bfloat16'],
        help='the same for OpenVINO, computed in this precision (default: float32)',
    )
    group.add_argument(
        '--int8',
        action='store_true',
        help="the same in 8 bits, calibrated on test images, by the test evaluator's metric",
    )
    group.add_argument('--torchscript', action='store_true', help='the same as TorchScript')
    group.add_argument(
        '--torch-export',
        action='store_true',
        help='the maps before boxes are decoded, as a program of torch.export',
    )
    group.add_argument(
        '--normalize', action='store_true', help='the files normalize images themselves'
    )
    group.add_argument(
        '--fixed-size',
        action='store_true',
        help='the files are for single images of the size of the first test image',
    )
    group.add_argument(
        '--opset', type=int, default=OPSET, help=f"version of ONNX's operators (default: {OPSET})"
    )
    group.add_argument(
        '--calibration-images', type=int, default=300, help='how many for --int8 (default: 300)'
    )
    group.add_argument(
        '--tolerance',
        type=float,
        default=0.01,
        help='by how much the metric may fall in int8, of 1 (default: 0.01)',
    )
    group.add_argument('--force', action='store_true', help='keep int8 files whatever they cost')


def wanted_formats(args: argparse.Namespace) -> List[str]:
    return [name for name in FORMATS if getattr(args, name)]


def check_export(args: argparse.Namespace, cfg: Config, stem: Path) -> None:
    """Raises UsageError for exports that cannot work, before anything is loaded."""
    formats = wanted_formats(args)
    for suffix in (suffix for name in formats for suffix in SUFFIXES[name]):
        if Path(f'{stem}{suffix}').is_dir():
            raise UsageError(f'{stem}{suffix} is a folder: name another folder.')
    for name in formats:
        need(f'--{name.replace("_", "-")}', *FORMATS[name])
    if not formats:
        return
    check_scope(cfg)
    if not OLDEST_OPSET <= args.opset <= NEWEST_OPSET:
        raise UsageError(
            f'--opset {args.opset} does not work: choose one from {OLDEST_OPSET}, which has the '
            f'operators for boxes and masks, to {NEWEST_OPSET}, the newest that torch writes.'
        )
    if args.calibration_images < 1:
        raise UsageError('--calibration-images must be at least 1.')
    if not 0 <= args.tolerance <= 1:
        raise UsageError('--tolerance must be from 0 to 1, as AP and accuracy are.')
    if args.torch_export:
        check_program_export()
    parts = ['test_dataloader', *['test_evaluator'] * args.int8]
    for part in parts:
        if not cfg.get(part):
            raise UsageError(
                f'the config has no {part}, whose data exported files are compared on: name the '
                'config of the training.'
            )
    check_data(cfg, *parts)
    if (cfg.model.get('test_cfg') or {}).get('mode') == 'slide':
        raise UsageError(
            'exported segmentors take whole images: set --cfg-options model.test_cfg.mode=whole.'
        )


class Exports:
    """The files of a network for other runtimes, made and compared in a temporary folder.

    Args:
        network: The fused network, in eval mode, on the CPU.
        cfg: Its config for inference, with its test data.
        args: The command line.
    """

    def __init__(self, network: nn.Module, cfg: Config, args: argparse.Namespace) -> None:
        self.network, self.cfg, self.args = network, cfg, args
        with redirect_stdout(io.StringIO()):  # pycocotools reports its steps
            self.data = TestData(cfg)
            self.samples = self._take(NUM_IMAGES)
        if not self.samples:
            raise UsageError('test_dataloader has no images to compare exported files on.')
        classes = self.data.dataset.metainfo.get('classes') or ()
        self.metadata = describe(cfg, network, classes, args.normalize)
        self.exporter = Exporter(
            network, cfg, self.samples[0], self.metadata, args.opset, args.fixed_size
        )

    def _take(self, number: int) -> List[dict]:
        """At most that many samples of the data, which the files can take."""
        samples = self.data.samples(number)
        if not self.args.fixed_size:
            return samples
        return [each for each in samples if each['inputs'].shape == samples[0]['inputs'].shape]

    def write(self, stem: Path) -> List[str]:
        """Makes every file that is asked for, and keeps them as ``stem`` with suffixes.

        Returns:
            A line about each of them.

        Raises:
            UsageError: if one cannot be made, or is not what torch computes; then none is kept.
        """
        lines = []
        with TemporaryDirectory() as folder:
            self.drafts = Path(folder, 'drafts')
            self.kept = Path(folder, 'kept') / stem.name
            for each in (self.drafts, self.kept.parent):
                each.mkdir()
            for name in wanted_formats(self.args):
                lines.append(f'{stem}{getattr(self, f"_write_{name}")()}')
            paths = sorted(self.kept.parent.iterdir())  # .bin before .xml, which needs it
            for path in paths:
                if path.suffix == '.bin':  # of another network, to an .xml that is there
                    (stem.parent / path.name).with_suffix('.xml').unlink(missing_ok=True)
                with replace_when_whole(stem.parent / path.name) as temporary:
                    shutil.copyfile(path, temporary)
        return lines

    @property
    def _onnx(self) -> Path:
        """The network as ONNX, from which the other files are made."""
        path = self.drafts / 'network.onnx'
        if not path.exists():
            self.exporter.onnx(path)
        return path

    def _write_onnx(self) -> str:
        shutil.copyfile(self._onnx, self._at('.onnx'))
        return f'.onnx: {self._agreement(".onnx")}'

    def _write_openvino(self) -> str:
        from ..deployment.openvino_files import to_openvino, write_openvino

        metadata = dict(self.metadata, precision=self.args.openvino)
        write_openvino(to_openvino(self._onnx, metadata), self._at('.xml'))
        return f'.xml and .bin: {self._agreement(".xml", self.args.openvino)}'

    def _write_int8(self) -> str:
        from ..deployment.openvino_files import to_openvino, write_openvino
        from ..deployment.quantization import quantize

        path, suffix = self.drafts / 'float32.xml', '_int8.xml'
        write_openvino(to_openvino(self._onnx, self.metadata), path)
        network, before, after = quantize(
            load_exported(path, self.cfg),
            self._take(self.args.calibration_images),
            self.data.measure,
            self.args.tolerance,
        )
        costs = ', '.join(f'{name} {before[name]:.3f} -> {after[name]:.3f}' for name in before)
        fall = max(before[name] - after[name] for name in before)
        if fall > self.args.tolerance and not self.args.force:
            raise UsageError(
                f'int8 costs more than --tolerance {self.args.tolerance} ({costs}): allow more, '
                'calibrate on more images, or keep the file all the same with --force.'
            )
        write_openvino(network, self._at(suffix))
        return f'{suffix} and .bin: float32 -> int8 on the test data: {costs}'

    def _write_torchscript(self) -> str:
        self.exporter.torchscript(self._at('.pt'))
        names = self.exporter.settings.onnx_config.output_names
        return f'.pt: {self._agreement(".pt", description=(self.metadata, names))}'

    def _write_torch_export(self) -> str:
        path = self._at('.pt2')
        self.exporter.program(path)
        error = self.exporter.error_of_program(path, self._groups)
        if error > 1e-4:
            raise self._refusal('.pt2', f'its maps differ by {error:.1e} of the largest')
        return f'.pt2: maps within {error:.1e} of torch, on {self._sizes}'

    def _agreement(self, suffix: str, precision: str = 'float32', **kwargs: Any) -> str:
        """Compares a file with torch; returns how many results agree, or raises UsageError."""
        expected, got = [], []
        try:
            model = load_exported(self._at(suffix), self.cfg, **kwargs)
        except Exception as error:
            raise self._refusal(suffix, f'it does not run ({reason(error)})') from error
        for group, predictions in zip(self._groups, self._expected):
            try:
                got += predict(model, group)
            except Exception as error:  # runtimes raise many kinds of errors
                shapes = ', '.join(str(tuple(sample['inputs'].shape)) for sample in group)
                why = f'it does not take {shapes} ({reason(error)})'
                raise self._refusal(suffix, why) from error
            expected += predictions
        agreement = compare(expected, got, TOLERANCES[precision])
        if not agreement.is_enough:
            raise self._refusal(suffix, f'only {agreement}')
        if not agreement.number:
            raise UsageError(
                f'the {suffix} file is not written: PyTorch finds no boxes on the test images, so '
                'nothing could be compared; lower model.test_cfg.score_thr, or train for longer.'
            )
        return f'{agreement}, on {self._sizes}'

    def _refusal(self, suffix: str, why: str) -> UsageError:
        other = '' if self.args.fixed_size else 'try --fixed-size, '
        return UsageError(
            f'the {suffix} file is not written: {why}; {other}leave this format out, or choose '
            'another head.'
        )

    @property
    def _sizes(self) -> str:
        images = f'{len(self.samples)} images'
        return images if self.args.fixed_size else f'{images}, in a batch and at another size'

    @cached_property
    def _groups(self) -> List[List[dict]]:
        """Batches to compare: one by one, one of another size, and batches."""
        single = [[each] for each in self.samples]
        if self.args.fixed_size:
            return single
        divisor = self.metadata['pad_size_divisor']
        smaller = crop(self.samples[0], divisor)
        batches = [self.samples[:2], *[[self.samples[-1], smaller]] * (divisor > 1)]
        return [*single, [smaller], *batches]

    @cached_property
    def _expected(self) -> List[List[BaseDataElement]]:
        return [predict(self.network, group) for group in self._groups]

    def _at(self, suffix: str) -> Path:
        return self.kept.with_name(self.kept.name + suffix)
