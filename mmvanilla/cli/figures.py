"""Figures that programs write."""

import argparse
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..checkpoint import replace_when_whole

FORMATS = ('.png', '.pdf', '.svg')


def figure_file(path: str) -> Path:
    """For an argument of a program that names a figure's file."""
    if Path(path).suffix not in FORMATS:
        raise argparse.ArgumentTypeError(
            f'{path} is no name of a picture: end it with {", ".join(FORMATS)}'
        )
    return Path(path)


def write_figure(figure: Figure, path: Path, **options: Any) -> None:
    """Writes a figure whole or not at all.

    Args:
        figure: A figure that is not pyplot's, so that nothing has to be closed, or shown.
        path: A file whose suffix names the format, one of ``FORMATS``.
        options: Of ``Figure.savefig``.
    """
    with replace_when_whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format=path.suffix.lstrip('.'), **options)
