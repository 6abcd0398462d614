"""Which checkpoint a run resumes from. Nothing that it cannot read is ever overwritten."""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, Iterable, Mapping, Optional, Tuple, Union

from mmengine.logging import print_log

from ..errors import UsageError
from .reading import DamagedError, load_checkpoint

_NOT_FOR_RESUMING = re.compile(r'best_.*|.*_deploy\.pth')


def is_resumable(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a run can be resumed from it, unlike fused and best checkpoints."""
    return {'meta', 'message_hub', 'optimizer'} <= checkpoint.keys()


def latest_whole_checkpoint(
    work_dir: Union[str, Path], out_dir: Optional[str] = None
) -> Optional[Path]:
    """The checkpoint of the latest epoch and iteration that a run can be resumed from.

    It is the latest by what the files say, whatever their times and names. mmengine's
    ``last_checkpoint`` is not enough: a killed run may have left it, or the file that it names,
    truncated. Damaged files with a higher number in their name are renamed to ``*.damaged``, since
    the run will write files of those names.

    Args:
        work_dir: The run's folder.
        out_dir: The ``out_dir`` of its CheckpointHook, if it has one.

    Returns:
        Its path; None if there is no checkpoint at all, so that a run can begin.

    Raises:
        UsageError: if a file might be the latest and cannot be read, or if there are checkpoints,
            but none to resume from. A run that began again would overwrite them.
    """
    pointer = Path(work_dir, 'last_checkpoint')
    last = pointer.read_text().strip() if pointer.is_file() else ''
    folders = [work_dir, Path(last).parent if last else work_dir]
    if out_dir is not None and '://' not in out_dir:
        folders.append(Path(out_dir, Path(work_dir).name))  # as mmengine does
    folders = {Path(folder).resolve(): folder for folder in reversed(folders)}
    files = sorted(path for folder in folders.values() for path in Path(folder).glob('*.pth'))
    reasons: Dict[Path, UsageError] = {}
    steps: Dict[Path, Tuple[int, int]] = {}
    for path in files:
        try:
            checkpoint = load_checkpoint(path, values=False)
        except UsageError as error:
            if os.path.lexists(path):  # else another process of this run has renamed it
                reasons[path] = error
        else:
            if is_resumable(checkpoint):
                steps[path] = _step(checkpoint['meta'])
    latest = _first_whole(sorted(steps, key=lambda path: steps[path], reverse=True), reasons)
    unsure = [
        error
        for path, error in reasons.items()
        if not (_NOT_FOR_RESUMING.fullmatch(path.name) or isinstance(error, DamagedError))
    ]
    if unsure:
        raise unsure[0]
    if latest is None and files:
        raise UsageError(
            'no run can resume from what is there, and a new one would overwrite it: '
            + '; '.join(str(reasons.get(each, f'{each} holds only weights')) for each in files[:3])
            + f'{f"; and {len(files) - 3} more" if len(files) > 3 else ""}. '
            'Move these files, or name another --work-dir.'
        )
    for path in reasons if latest else ():
        if _NOT_FOR_RESUMING.fullmatch(path.name) is None and _number(path) > _number(latest):
            _set_aside(path, latest, reasons[path])
    return latest


def _first_whole(paths: Iterable[Path], reasons: Dict[Path, UsageError]) -> Optional[Path]:
    """The first file without damage; why the ones before it are not read is put into reasons."""
    for path in paths:
        try:
            load_checkpoint(path)
        except UsageError as error:
            reasons[path] = error
        else:
            return path
    return None


def _step(meta: Any) -> Tuple[int, int]:
    steps = [meta.get(name) if isinstance(meta, dict) else None for name in ('epoch', 'iter')]
    epoch, iteration = (step if isinstance(step, int) else -1 for step in steps)
    return epoch, iteration


def _number(path: Path) -> float:
    numbers = re.findall(r'\d+', path.stem)
    return int(numbers[-1]) if numbers else float('inf')


def _set_aside(path: Path, latest: Path, reason: UsageError) -> None:
    aside = path.with_name(f'{path.name}.damaged')
    while aside.exists():
        aside = aside.with_name(f'{aside.name}_')
    with suppress(FileNotFoundError):  # another process of this run may be first
        path.rename(aside)
    print_log(f'{reason} It is now {aside}, and the run resumes from {latest}.', 'current', 30)
