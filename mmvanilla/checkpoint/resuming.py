"""Which checkpoint a run resumes from. Nothing that it cannot read is ever overwritten."""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple, Union

from mmengine.logging import print_log

from ..errors import UsageError
from .reading import DamagedError, load_checkpoint

# In the message hub: which run a checkpoint is of. A resumed run keeps it.
RUN_ID = 'mmvanilla_run_id'
TEMPLATES = ('epoch_{}.pth', 'iter_{}.pth')  # of mmengine's CheckpointHook


def is_resumable(checkpoint: Mapping[str, Any], path: Union[str, Path] = '') -> bool:
    """Whether a run can be resumed from it, unlike fused and best checkpoints.

    Args:
        checkpoint: What is in the file.
        path: The file. Without it, a checkpoint without optimizer is taken for a best one.
    """
    is_last = bool(path) and not Path(path).name.startswith('best_')
    return {'meta', 'message_hub'} <= checkpoint.keys() and ('optimizer' in checkpoint or is_last)


def step_in_name(name: str, *templates: str) -> Optional[int]:
    """The epoch or iteration in a file's name; None for a name of another form.

    Args:
        name: The name.
        templates: Names with ``{}`` for the number, as ``filename_tmpl`` of CheckpointHook.
    """
    for template in templates:
        before, _, after = re.split(r'({[^}]*})', template, maxsplit=1)
        found = re.fullmatch(rf'{re.escape(before)}(\d+){re.escape(after)}', name)
        if found:
            return int(found[1])
    return None


def run_id_of(checkpoint: Mapping[str, Any]) -> Any:
    """Which run a checkpoint is of; None for those that mmengine's own hook wrote."""
    hub = checkpoint.get('message_hub')
    info = hub.get('runtime_info') if isinstance(hub, Mapping) else None
    return info.get(RUN_ID) if isinstance(info, Mapping) else None


def latest_whole_checkpoint(
    work_dir: Union[str, Path], out_dir: Optional[str] = None, template: Optional[str] = None
) -> Union[Path, str, None]:
    """The checkpoint of the latest epoch and iteration that a run can be resumed from.

    It is the latest by what the files say, whatever their times and names, of the run that wrote
    ``last_checkpoint``. That file itself is not enough: a killed run may have left it, or the file
    that it names, truncated. Damaged files with a higher number in their name are renamed to
    ``*.damaged``, since the run will write files of those names. Remote files, and the folders of
    sharded strategies, are taken as ``last_checkpoint`` names them.

    Args:
        work_dir: The run's folder.
        out_dir: The ``out_dir`` of its CheckpointHook, if it has one.
        template: The ``filename_tmpl`` of its CheckpointHook, if it has one.

    Returns:
        Its path; None if there is no checkpoint at all, so that a run can begin.

    Raises:
        UsageError: if a file might be the latest and cannot be read, or if there are checkpoints,
            but none to resume from. A run that began again would overwrite them.
    """
    pointer = Path(work_dir, 'last_checkpoint')
    last = pointer.read_text().strip() if pointer.is_file() else ''
    if '://' in last or os.path.isdir(last):
        return last
    templates = [template] if template else TEMPLATES
    folders = {Path(work_dir)}
    if out_dir is not None and '://' not in out_dir:
        folders.add(Path(out_dir, Path(work_dir).name))  # as mmengine does
    found = sorted(path for folder in folders for path in folder.glob('*.pth'))
    found = [path for path in found if not path.is_dir()]
    files = [path for path in found if step_in_name(path.name, *templates) is not None]
    reasons: Dict[Path, UsageError] = {}
    latest = _first_whole(_by_progress(files, Path(last).name, reasons), reasons)
    unsure = [error for error in reasons.values() if not isinstance(error, DamagedError)]
    if unsure:
        raise unsure[0]
    results = [path for path in found if re.fullmatch(r'best_.*|.*_deploy\.pth', path.name)]
    lost = [*files, *results]
    if latest is None and lost:
        reason = '; '.join(
            str(reasons.get(each, f'{each} holds only weights')).rstrip('.') for each in lost[:3]
        )
        more = f'; and {len(lost) - 3} more' if len(lost) > 3 else ''
        raise UsageError(
            f'no run can resume from what is there, and a new one would overwrite it: {reason}'
            f'{more}. Move these files, or name another --work-dir.'
        )
    for path in reasons if latest else ():
        own, other = (step_in_name(each.name, *templates) or 0 for each in (path, latest))
        if own > other:
            _set_aside(path, latest, reasons[path])
    return latest


def _by_progress(files: List[Path], last: str, reasons: Dict[Path, UsageError]) -> List[Path]:
    """The files that a run can resume from, of the run that wrote ``last``; the latest first.

    Why others cannot be read is put into ``reasons``.
    """
    steps: Dict[Path, Tuple[int, int]] = {}
    runs: Dict[Path, Any] = {}
    for path in files:
        try:
            checkpoint = load_checkpoint(path, values=False)
        except UsageError as error:
            if os.path.lexists(path):  # else another process of this run has renamed it
                reasons[path] = error
        else:
            if is_resumable(checkpoint, path):
                steps[path], runs[path] = _step(checkpoint['meta']), run_id_of(checkpoint)
    named = [path for path in steps if path.name == last]
    newest = max(named or steps, key=lambda path: path.stat().st_mtime_ns, default=None)
    ours = [path for path in steps if runs[path] == runs[newest]]
    return sorted(ours, key=lambda path: steps[path], reverse=True)


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


def _set_aside(path: Path, latest: Path, reason: UsageError) -> None:
    aside = path.with_name(f'{path.name}.damaged')
    while aside.exists():
        aside = aside.with_name(f'{aside.name}_')
    with suppress(FileNotFoundError):  # another process of this run may be first
        path.rename(aside)
    print_log(f'{reason} It is now {aside}, and the run resumes from {latest}.', 'current', 30)
