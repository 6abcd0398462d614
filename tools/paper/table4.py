"""Table 4 of the paper (ImageNet-1k, 224x224) with latencies measured here, and Figure 3 with both.

Models that mmpretrain lacks have only the paper's numbers.
"""

import argparse
import csv
import gc
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Dict, Iterator, List, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from mmvanilla.checkpoint import replace_when_whole
from mmvanilla.cli.figures import figure_file, write_figure
from mmvanilla.cli.options import add_device, log_errors_only, one_sentence_errors
from mmvanilla.cli.tables import print_table, read_table
from mmvanilla.cli.timing import describe_machine
from mmvanilla.errors import UsageError

sys.path.insert(0, str(Path(__file__).parents[1] / 'analysis_tools'))
from benchmark import Case, add_case, make_case, time_forms  # noqa: E402  a tool beside this folder

PUBLISHED = Path(__file__).with_name('table4.csv')
QUOTED_LATENCY = 'latency on A100 (ms)'
FORMS = ('deep', 'deploy', 'graph', 'optimized')
AREA = {'depth': 6, 'parameters (M)': 4}  # circle area in square points per layer or million

Row = Dict[str, str]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--forms', nargs='+', choices=FORMS, default=['deep', 'deploy', 'optimized']
    )
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--shape', type=int, nargs=2, default=(224, 224), metavar=('H', 'W'))
    parser.add_argument('--rounds', type=int, default=10, help='how many times each is timed')
    add_case(parser)
    add_device(parser)
    parser.add_argument('--csv', type=Path, help='file for the numbers')
    parser.add_argument('--figure3', type=figure_file, help='file (.png, .pdf, .svg) for Figure 3')
    return parser.parse_args()


def measure(rows: Sequence[Row], case: Case, args: argparse.Namespace) -> Iterator[Row]:
    """The paper's rows, with the milliseconds of each form; '' for models that mmpretrain lacks."""
    for row in rows:
        name = row.pop('mmpretrain')
        seconds = [None] * len(args.forms)
        if name:
            seconds, _ = time_forms(name, args.forms, case, args.rounds)
            gc.collect()
        for form, mine in zip(args.forms, seconds):
            row[f'{form} (ms)'] = '' if mine is None else f'{1000 * mine:.4g}'
        yield row


def draw_figure3(rows: Sequence[Row], latency: str, title: str, path: Path) -> None:
    """Accuracy against latency: the paper's latencies above, measured ones below.

    Circles grow with depth on the left, with the number of parameters on the right.

    Args:
        rows: The rows of Table 4, with a column of measured latencies (ms), '' where there is none.
        latency: Name of that column.
        title: What they were measured on.
        path: The picture's file.
    """
    figure = Figure((16, 13), layout='constrained')
    axes = figure.subplots(2, 2)
    for line, column, where in zip(
        axes, (QUOTED_LATENCY, latency), ('NVIDIA A100 (quoted from the paper)', title)
    ):
        for axis, size in zip(line, AREA):
            axis.set(xscale='log', xlabel='latency (ms)', ylabel='top-1 accuracy (%)')
            axis.set_title(f'{where}, circles by {size}', fontsize=9)
            axis.grid(alpha=0.3, which='both')
            draw_models(axis, rows, column, size)
    figure.draw_without_rendering()  # the axes have their final sizes
    figure.set_layout_engine('none')
    for axis in axes.flat:
        label_models(axis)
    write_figure(figure, path)


def draw_models(axis: Axes, rows: Sequence[Row], latency: str, size: str) -> None:
    """Draws a circle for each model with a latency, in its family's colour, and its name in it."""
    families = [re.match('[A-Za-z]+', row['model'])[0] for row in rows]
    colours = {family: f'C{i}' for i, family in enumerate(dict.fromkeys(families))}
    for row, family in zip(rows, families):
        if not row[latency]:
            continue
        x, y = float(row[latency]), float(row['top-1'])
        axis.scatter(x, y, float(row[size]) * AREA[size], colours[family], alpha=0.45)
        axis.text(x, y, row['model'], fontsize=7, ha='center', va='center')
    axis.margins(0.15, 0.1)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.xaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
    axis.xaxis.set_minor_formatter(NullFormatter())


def label_models(axis: Axes) -> None:
    """Moves the names apart, within the axes; lines lead from those that moved to their circles."""
    from adjustText import adjust_text

    arrow = dict(arrowstyle='-', color='0.4', linewidth=0.5)
    adjust_text(axis.texts, ax=axis, iter_lim=500, arrowprops=arrow)


def main() -> None:
    args = parse_args()
    if args.figure3 and find_spec('adjustText') is None:
        raise UsageError('--figure3 needs adjustText: pip install adjustText.')
    case = make_case(args, (args.batch_size, 3, *args.shape), 'inference')
    log_errors_only()
    machine = f'{describe_machine(args.device)}, {args.precision}, {args.layout}'
    print(
        f'{machine}, images of {args.shape[0]}x{args.shape[1]}, medians of {args.rounds}\n',
        flush=True,
    )
    rows: List[Row] = []

    def cells() -> Iterator[List[str]]:
        for row in measure(read_table(PUBLISHED), case, args):
            rows.append(row)
            yield list(row.values())

    head = [name for name in read_table(PUBLISHED)[0] if name != 'mmpretrain']
    print_table(head + [f'{form} (ms)' for form in args.forms], cells())
    if args.csv:
        with replace_when_whole(args.csv) as temporary, open(temporary, 'w', newline='') as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    if args.figure3:
        draw_figure3(rows, f'{args.forms[-1]} (ms)', f'{machine} (here)', args.figure3)


if __name__ == '__main__':
    with one_sentence_errors():
        main()
