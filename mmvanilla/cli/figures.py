"""Figures that programs write."""

import argparse
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..checkpoint import replace_when_whole

FORMATS = ('.png', '.pdf', '.svg')


def figure_file(path: str) -> Path:
    """The type of a command-line argument that names a figure's file."""
    if Path(path).suffix not in FORMATS:
        raise argparse.ArgumentTypeError(
            f'{path} does not name a picture: end it with {", ".join(FORMATS)}'
        )
    return Path(path)


def write_figure(figure: Figure, path: Path, **options: Any) -> None:
    """Writes a figure completely or not at all.

    Args:
        figure: A figure made without pyplot, so that it need not be closed.
        path: A file whose suffix is one of ``FORMATS``.
        options: Arguments of ``Figure.savefig``.
    """
    with replace_when_whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format=path.suffix.lstrip('.'), **options)
