"""What the demos share: training, fusing and evaluating as a user would, and reporting it."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from shlex import quote
from statistics import mean, stdev
from typing import Any, Dict, NamedTuple, Sequence

import cv2
import numpy as np
from matplotlib.figure import Figure
from mmengine.device import get_device

from mmvanilla.checkpoint import latest_whole_checkpoint
from mmvanilla.cli.figures import write_figure
from mmvanilla.cli.kept_runs import (
    check_kept,
    code_digest,
    differences,
    read_results,
    run_and_keep,
)
from mmvanilla.cli.running import read_log
from mmvanilla.cli.timing import describe_machine

PREDICTIONS = 'predictions.pkl'


class Run(NamedTuple):
    """A training run with its last checkpoint and the fused one, and the metrics of both.

    Without VanillaNet there is no fused checkpoint.
    """

    folder: Path
    minutes: float
    trained: Path
    fused: Path
    metrics: Dict[str, float]
    fused_metrics: Dict[str, float]


def train_anew(config: str, folder: str) -> Run:
    """``train_and_evaluate`` in a folder that is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    return train_and_evaluate(config, Path(folder))


def train_and_evaluate(config: str, folder: Path, *options: str) -> Run:
    """Trains with a config, from scratch, and evaluates both checkpoints on the validation images.

    Their predictions are kept too, in ``PREDICTIONS`` in ``test`` and ``test_deploy``.

    Args:
        config: The config file.
        folder: For all output.
        options: More options of tools/train.py.
    """
    start = time.perf_counter()
    run_tool('train', config, '--work-dir', str(folder), *options)
    minutes = (time.perf_counter() - start) / 60
    trained = latest_whole_checkpoint(folder)
    fused = trained.with_name(f'{trained.stem}_deploy.pth')
    metrics = evaluate(config, trained, folder / 'test')
    fused_metrics = {}
    if fused.exists():
        fused_metrics = evaluate(config, fused, folder / 'test_deploy', '--deploy')
    return Run(folder, minutes, trained, fused, metrics, fused_metrics)


def describe_run(config: str, seed: int, data: str = '') -> Dict[str, Any]:
    """What a run with a seed depends on, as ``differences`` takes it.

    Args:
        config: The text of the config.
        seed: The seed.
        data: A digest of the data.
    """
    return {
        'another config': config,
        'another seed': seed,
        'other data': data,
        'another version of mmvanilla': code_digest(),
        'another machine or number of threads': describe_machine(get_device()),
    }


def train_once(folder: Path, asked: Dict[str, Any]) -> Run:
    """As ``train_and_evaluate`` with a seed, unless the folder holds that run already.

    A run that was stopped starts over.

    Args:
        folder: For all output. Its config, ``config.py``, is there too.
        asked: What the run depends on: ``describe_run``.

    Raises:
        UsageError: if the folder holds anything else.
    """

    def run(folder: Path) -> Dict[str, Any]:
        config, seed = folder / 'config.py', f'randomness.seed={asked["another seed"]}'
        config.write_text(asked['another config'], encoding='utf-8')
        found = train_and_evaluate(str(config), folder, '--cfg-options', seed)
        kept = dict(found._asdict(), trained=found.trained.name, fused=found.fused.name)
        del kept['folder']
        return kept

    check_kept({folder: asked})
    try:
        if differences(folder, asked) is None:
            run_and_keep(folder, asked, run)
    except KeyboardInterrupt:
        print('The same command keeps the finished runs, and starts this one again.', flush=True)
        raise
    return read_run(folder)


def read_run(folder: Path) -> Run:
    """The finished run that a folder holds."""
    kept = read_results(folder)
    return Run(
        folder, trained=folder / kept.pop('trained'), fused=folder / kept.pop('fused'), **kept
    )


def spread(values: Sequence[float], form: str) -> str:
    """The mean of values, formatted, with their standard deviation if there are several."""
    deviation = f' ± {stdev(values):{form}}' if len(values) > 1 else ''
    return f'{mean(values):{form}}{deviation}'


def run_tool(tool: str, *args: str) -> None:
    """Runs a tool as a user would; if it fails, the demo ends."""
    command = [sys.executable, str(Path(__file__).parents[1] / f'{tool}.py'), *args]
    print('$', ' '.join(map(quote, ['python', f'tools/{tool}.py', *args])), flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # subprocess.run then ends the tool too
    if subprocess.run(command).returncode != 0:
        sys.exit(f'tools/{tool}.py failed: see its output above.')


def evaluate(config: str, checkpoint: Path, folder: Path, *args: str) -> Dict[str, float]:
    """The metrics of a checkpoint, as tools/test.py reports them."""
    out = str(folder / PREDICTIONS)
    run_tool('test', config, str(checkpoint), '--work-dir', str(folder), '--out', out, *args)
    (result,) = folder.glob('*/*.json')
    return json.loads(result.read_text())


def draw_curves(run: Run, metric: str, title: str) -> None:
    """Draws loss, a metric and λ over the epochs of a run, or its iterations if it has no epochs.

    Args:
        run: The run. The picture goes into its folder, as ``curves.png``.
        metric: Name of the metric in the log.
        title: What the metric is called in the picture.
    """
    log = read_log(run.folder)
    train = [line for line in log if 'loss' in line]
    val = [line for line in log if metric in line]
    last = train[-1]
    unit, per_unit = (
        ('epoch', last['iter'] / last['epoch']) if 'epoch' in last else ('iteration', 1)
    )
    steps = [line['iter'] / per_unit for line in train]
    figure = Figure((12, 3.2), layout='constrained')
    axes = figure.subplots(1, 3)
    axes[0].plot(steps, [line['loss'] for line in train])
    axes[1].plot([line['step'] for line in val], [line[metric] for line in val], 'o-')
    axes[2].step(steps, [line['lambda'] for line in train])
    for axis, name in zip(axes, ('training loss', title, 'λ')):
        axis.set(title=name, xlabel=unit, ylim=(0, None))
        axis.grid(alpha=0.3)
    write_figure(figure, run.folder / 'curves.png')


def report(run: Run, lines: Dict[str, str], pictures: str) -> None:
    """Prints what a demo did: its training, then ``lines`` by their titles, then its pictures.

    Args:
        run: The run.
        lines: What came out of it.
        pictures: What ``predictions.png`` shows.
    """
    lines = {
        'training': f'{run.minutes:.1f} minutes, {run.trained}',
        **lines,
        'pictures': f'{run.folder}/predictions.png ({pictures}), {run.folder}/curves.png',
    }
    print()
    for title, text in lines.items():
        print(f'{title:12} {text}')


def both(run: Run, metric: str, form: str) -> str:
    """A metric of the trained and the fused network, formatted."""
    trained, fused = (format(each[metric], form) for each in (run.metrics, run.fused_metrics))
    return f'{trained} in training form, {fused} fused'


def write_picture(pictures: Sequence[np.ndarray], path: Path) -> None:
    """Writes pictures, (H, W, 3) in RGB, two per row, with black borders."""
    height, width = np.max([each.shape[:2] for each in pictures], axis=0)
    framed = [
        cv2.copyMakeBorder(each, 3, 3 + below, 3, 3 + beside, cv2.BORDER_CONSTANT)
        for each in pictures
        for below, beside in [(height - each.shape[0], width - each.shape[1])]
    ]
    if len(framed) % 2:
        framed.append(np.zeros_like(framed[0]))
    rows = [np.hstack(framed[i : i + 2]) for i in range(0, len(framed), 2)]
    cv2.imwrite(str(path), np.vstack(rows)[..., ::-1])
