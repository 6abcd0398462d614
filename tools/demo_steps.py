"""What the demos have in common: running the tools as a user would, and reading what they wrote."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List

from matplotlib.figure import Figure

from mmvanilla.cli.figures import write_figure


def run_tool(tool: str, config: str, *args: str) -> float:
    """Runs a tool as a user would; returns the seconds it took."""
    command = [sys.executable, f'tools/{tool}.py', config, *args]
    print('$', ' '.join(['python', *command[1:]]), flush=True)
    start = time.perf_counter()
    if subprocess.run(command).returncode != 0:
        sys.exit(f'tools/{tool}.py failed: what it printed above says why.')
    return time.perf_counter() - start


def evaluate(config: str, checkpoint: Path, folder: Path, *args: str) -> Dict[str, float]:
    """The metrics of a checkpoint on the validation images, as tools/test.py gives them."""
    run_tool('test', config, str(checkpoint), '--work-dir', str(folder), *args)
    (result,) = folder.glob('*/*.json')
    return json.loads(result.read_text())


def read_log(work_dir: Path) -> List[Dict]:
    """The lines of a run's log, each the losses of some iterations or the metrics of an epoch."""
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in log.read_text().splitlines()]


def draw_curves(log: List[Dict], metric: str, title: str, path: Path) -> None:
    """Draws loss, metric and λ over the epochs of a run, or its iterations if it has no epochs."""
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
    write_figure(figure, path)
