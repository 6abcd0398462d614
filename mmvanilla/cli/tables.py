"""Tables: data that programs read, and Markdown that they write."""

import csv
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Sequence


def read_table(path: Path) -> List[Dict[str, str]]:
    """The rows of a CSV file, by the names of its columns."""
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def markdown_lines(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """The lines of a Markdown table, each as soon as its row comes; None is an empty cell."""
    yield _line(head)
    yield _line(['---'] * len(head))
    yield from map(_line, rows)


def print_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints a Markdown table, row by row."""
    for line in markdown_lines(head, rows):
        print(line, flush=True)


def _line(cells: Iterable[Any]) -> str:
    return f'| {" | ".join("" if cell is None else str(cell) for cell in cells)} |'
