"""Figures that programs write."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..checkpoint import replace_when_whole


def write_figure(figure: Figure, path: Path, **options: Any) -> None:
    """Writes a figure whole or not at all.

    Args:
        figure: A figure that is not pyplot's, so that nothing has to be closed, or shown.
        path: A file whose suffix names the format: .png, .pdf, .svg.
        options: Of ``Figure.savefig``.
    """
    with replace_when_whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format=path.suffix.lstrip('.'), **options)
