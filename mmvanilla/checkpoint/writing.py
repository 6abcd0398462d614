"""Writing files whole or not at all."""

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
    """Gives a temporary name beside ``path`` to write to, and renames it to ``path`` at the end.

    A process killed on the way leaves whatever was at ``path`` as it was; what it leaves in the
    folder is removed when the next file is written there. The name cannot be guessed, and the file
    is new: no planted link is followed, and two writers do not mix.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    with _new_file(path) as file:
        temporary = Path(file.name)
        try:
            yield temporary
            with open(temporary, 'rb+') as written:  # to write, or Windows would not flush it
                os.fsync(written.fileno())
            if fcntl is None:
                file.close()  # Windows does not rename open files
            os.replace(temporary, path)
        finally:
            file.close()
            with suppress(FileNotFoundError):
                temporary.unlink()


def _new_file(path: Path) -> BinaryIO:
    """An empty file beside ``path``, locked as long as it is open."""
    while True:
        file = open(path.with_name(f'{path.name}.{secrets.token_hex(8)}{TEMPORARY}'), 'xb')
        _lock(file, wait=True)
        if os.path.exists(file.name):  # not taken for a leftover before it was locked
            return file
        file.close()


def _remove_leftovers(folder: Path) -> None:
    """Removes temporary files that no process has locked; they stay where locks do not work."""
    for path in folder.glob(f'*{TEMPORARY}'):
        if not path.is_symlink():
            with suppress(OSError), open(path, 'rb+') as file:
                if _lock(file, wait=False):
                    path.unlink()


def _lock(file: BinaryIO, wait: bool) -> bool:
    """Whether the file could be locked, against other processes and other openings of it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (OSError, AttributeError):  # held by another, or a file system or Windows without locks
        return False
    return True
