"""Training runs that commands keep: finished ones are not repeated, unless something changed."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from ..checkpoint import reserve_folder
from ..coco_annotations import list_some
from ..errors import UsageError
from ..model_index import find_root
from ..supported_versions import SUPPORTED, installed_version

RESULTS = 'results.json'


def code_digest() -> str:
    """A digest of what trains and evaluates: the package, its tools, OpenMMLab's versions."""
    package, tools = Path(__file__).parents[1], find_root() / 'tools'
    files = [path for path in package.rglob('*.py') if '.mim' not in path.parts]
    files += tools.glob('dataset_converters/digits_*.py')
    files += [tools / 'train.py', tools / 'test.py']
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.read_bytes())
    for distributions, *_ in SUPPORTED.values():
        digest.update(str([*map(installed_version, distributions)]).encode())
    return digest.hexdigest()


def differences(folder: Path, asked: Dict[str, Any]) -> Optional[List[str]]:
    """In what the finished run of a folder differs from what is asked for; None if there is none.

    Args:
        folder: The run's folder.
        asked: Everything that the run depends on, by what to call it if it is another.
    """
    try:
        kept = json.loads((folder / RESULTS).read_text())['asked']
        return [
            f'{name}{_explain(kept.get(name), value)}'
            for name, value in asked.items()
            if kept.get(name) != value
        ]
    except (OSError, ValueError, TypeError, LookupError, AttributeError):  # missing or damaged
        return None


def _explain(kept: Any, asked: Any) -> str:
    """The first lines in which two texts differ, unless they are digests or long."""
    both = [str(each).splitlines() for each in (kept, asked)]
    old, new = next((pair for pair in zip(*both) if pair[0] != pair[1]), ('', ''))
    if not old or max(len(old), len(new)) > 100 or ' ' not in f'{old}{new}':
        return ''
    return ': {} instead of {}'.format(*(each.strip(' ,') for each in (old, new)))


def check_kept(asked: Dict[Path, Dict[str, Any]]) -> None:
    """Raises UsageError about folders with anything but the finished run that is asked for.

    Args:
        asked: As for ``differences``, by the runs' folders. They need not exist.
    """
    faults = []
    for folder, each in asked.items():
        different = differences(folder, each)
        if different:
            faults.append(f'{folder} ({different[0]})')
        elif different is None and (folder.exists() or folder.is_symlink()):
            faults.append(f'{folder} (no finished run)')
    if faults:
        raise UsageError(
            f'these are not the runs that you ask for: {list_some(faults)}. Ask for the same, '
            'remove them, or name another --work-dir.'
        )


def read_results(folder: Path) -> Dict[str, Any]:
    """What the run of a folder left, as ``run_and_keep`` returned it."""
    return json.loads((folder / RESULTS).read_text())['results']


def run_and_keep(
    folder: Path, asked: Dict[str, Any], run: Callable[[Path], Dict[str, Any]]
) -> Dict[str, Any]:
    """Does a run, and keeps its folder and results.

    Until it is finished, its folder is called ``NAME.running``. What a stopped one left there is
    removed.

    Args:
        folder: The folder; what was there is replaced at the end.
        asked: As for ``differences``.
        run: Does the run in the folder that it is given, and returns its results, fit for JSON.

    Raises:
        UsageError: if such a run is going on, as a training does whose command was killed.
    """
    running = folder.with_name(f'{folder.name}.running')
    reserve_folder(running)
    shutil.rmtree(running)
    running.mkdir()
    results = run(running)
    (running / RESULTS).write_text(json.dumps(dict(asked=asked, results=results)))
    shutil.rmtree(folder, ignore_errors=True)
    running.rename(folder)
    return results
