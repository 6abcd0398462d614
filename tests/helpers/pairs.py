"""Python 3.8 and 3.9 have no ``zip(strict=True)``."""

from typing import Any, Iterable, Iterator, Tuple


def zip_equal(*iterables: Iterable[Any]) -> Iterator[Tuple[Any, ...]]:
    """The items side by side; fails if the iterables differ in length."""
    lists = [list(each) for each in iterables]
    assert len({len(each) for each in lists}) == 1, 'they differ in length'
    return zip(*lists)
