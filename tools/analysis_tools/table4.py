"""Table 4 of the paper (ImageNet-1k, 224x224), and Figure 3, which draws it."""

import csv
import re
from pathlib import Path
from typing import Dict, List, Sequence

from matplotlib.figure import Figure

from mmvanilla.cli.figures import write_figure

QUOTED_LATENCY = 'latency on A100 (ms)'
AREA = {'depth': 6, 'parameters (M)': 4}  # of a circle, in square points for one layer, or million


def read_table4() -> List[Dict[str, str]]:
    """The paper's rows, and the name of each model in mmpretrain, '' where it has none."""
    with open(Path(__file__).with_name('table4.csv'), newline='') as file:
        return list(csv.DictReader(file))


def draw_figure3(rows: Sequence[Dict[str, str]], latency: str, title: str, path: Path) -> None:
    """Accuracy against latency: the paper's latencies above, measured ones below.

    Circles grow with depth on the left, with the number of parameters on the right.

    Args:
        rows: Of ``read_table4``, with a column of measured latencies (ms), '' where there is none.
        latency: Name of that column.
        title: What they were measured on.
        path: The picture's file.
    """
    families = {row['model']: re.match('[A-Za-z]+', row['model'])[0] for row in rows}
    colours = {family: f'C{i}' for i, family in enumerate(dict.fromkeys(families.values()))}
    figure = Figure((14, 11), layout='constrained')
    axes = figure.subplots(2, 2)
    for line, column, where in zip(
        axes, (QUOTED_LATENCY, latency), ('NVIDIA A100 (quoted from the paper)', title), strict=True
    ):
        for axis, (size, area) in zip(line, AREA.items(), strict=True):
            for row in rows:
                if not row[column]:
                    continue
                x, y = float(row[column]), float(row['top-1'])
                family = families[row['model']]
                axis.scatter(x, y, float(row[size]) * area, colours[family], alpha=0.45)
                axis.annotate(
                    row['model'], (x, y), fontsize=6, ha='center', va='center', clip_on=True
                )
            axis.set(xscale='log', xlabel='latency (ms)', ylabel='top-1 accuracy (%)')
            axis.set_title(f'{where}, circles by {size}', fontsize=9)
            axis.grid(alpha=0.3, which='both')
    write_figure(figure, path)
