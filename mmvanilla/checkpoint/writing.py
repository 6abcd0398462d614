"""Writing files completely or not at all, and by one run at a time."""

import os
import re
import secrets
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Dict, Iterator, Union

from ..errors import UsageError

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

    Raises:
        UsageError: if the file cannot be written, as on a full disk.
    """
    path = Path(path)
    with _failing_in_one_sentence(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        with _new_file(path) as file:
            temporary = Path(file.name)
            try:
                yield temporary
                with open(temporary, 'rb+') as written:  # Windows flushes only files it can write
                    os.fsync(written.fileno())
                if fcntl is None:
                    file.close()  # Windows does not rename open files
                os.replace(temporary, path)
            finally:
                file.close()
                with suppress(FileNotFoundError):
                    temporary.unlink()


@contextmanager
def _failing_in_one_sentence(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
    except RuntimeError as error:
        if not re.search('PytorchStreamWriter|inline_container', str(error)):
            raise
        why = 'the disk may be full'  # torch only says that it could not write
    else:
        return
    raise UsageError(f'{path} cannot be written ({why}): make room, or name another folder.')


def check_writable(path: Union[str, Path], is_folder: bool = False) -> None:
    """Raises UsageError if a file or folder cannot be made at ``path``; it makes nothing."""
    folder = os.path.abspath(path)
    if is_folder and os.path.isfile(folder):
        raise UsageError(f'{path} is a file: name a folder.')
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder) and folder != os.path.abspath(path):
        raise UsageError(f'{path} cannot be written, because {folder} is a file: name another.')
    if not os.access(folder, os.W_OK):
        raise UsageError(
            f'{path} cannot be written: there is no permission for {folder}; name another folder.'
        )


_reserved: Dict[Path, int] = {}  # open descriptors of folders


def reserve_folder(folder: Union[str, Path]) -> None:
    """Keeps a folder, which is made, for this process until it ends, even if it is killed.

    Where there are no locks, as on Windows and some network drives, it does nothing more.

    Raises:
        UsageError: if another process has reserved it.
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None or folder in _reserved:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UsageError(
            f'another run is using {folder}: wait until it ends, or name another --work-dir.'
        ) from None
    except OSError:
        os.close(descriptor)
    else:
        _reserved[folder] = descriptor


def _forget_reserved() -> None:
    """In data loaders' processes, which may outlive a killed run for some seconds."""
    while _reserved:
        os.close(_reserved.popitem()[1])


if fcntl is not None:
    os.register_at_fork(after_in_child=_forget_reserved)


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
