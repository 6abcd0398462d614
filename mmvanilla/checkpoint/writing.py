"""Writing files completely or not at all."""

import os
import secrets
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Iterator, Union

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

TEMPORARY = '.mmvanilla.tmp'


@contextmanager
def replace_when_whole(path: Union[str, Path]) -> Iterator[Path]:
    """Yields a temporary file beside ``path`` to write to, and renames it to ``path`` at the end.

    If the process is killed before that, whatever was at ``path`` stays; the temporary file is
    removed when the next file is written to the folder. The name cannot be guessed, and the file is
    new: no planted link is followed, and two writers do not interfere.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    with _new_file(path) as file:
        temporary = Path(file.name)
        try:
            yield temporary
            with open(temporary, 'rb+') as written:  # Windows flushes only files open for writing
                os.fsync(written.fileno())
            if fcntl is None:
                file.close()  # Windows does not rename open files
            os.replace(temporary, path)
        finally:
            file.close()
            with suppress(FileNotFoundError):
                temporary.unlink()


def _new_file(path: Path) -> BinaryIO:
    """An empty file beside ``path``, which stays locked while it is open."""
    while True:
        file = open(path.with_name(f'{path.name}.{secrets.token_hex(8)}{TEMPORARY}'), 'xb')
        _lock(file, wait=True)
        if os.path.exists(file.name):  # nobody removed it before it was locked
            return file
        file.close()


def _remove_leftovers(folder: Path) -> None:
    """Removes temporary files that no process has locked, where locks work."""
    for path in folder.glob(f'*{TEMPORARY}'):
        if not path.is_symlink():
            with suppress(OSError), open(path, 'rb+') as file:
                if _lock(file, wait=False):
                    path.unlink()


def _lock(file: BinaryIO, wait: bool) -> bool:
    """Locks a file against other processes and other openings of it; returns whether it did."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (OSError, AttributeError):  # another process has it, or there are no locks (Windows)
        return False
    return True
