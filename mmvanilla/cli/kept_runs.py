"""Training runs that commands keep: finished ones are not repeated, unless something changed."""

import hashlib
import json
import shutil
import uuid
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from ..model_index import find_root

RESULTS = 'results.json'


def code_digest() -> str:
    """A digest of the code that runs depend on: the package, how it trains, how data are made."""
    package, tools = Path(__file__).parents[1], find_root() / 'tools'
    makers = tools.glob('dataset_converters/digits_*.py')
    files = [*package.rglob('*.py'), *makers, tools / 'train.py']
    digest = hashlib.sha256()
    for path in sorted(path for path in files if '.mim' not in path.parts):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def differences(folder: Path, asked: Dict[str, Any]) -> Optional[List[str]]:
    """In what the finished run of a folder differs from what is asked for; None if there is none.

    Args:
        folder: The run's folder.
        asked: Everything that the run depends on, by what to call it if it is another.
    """
    path = folder / RESULTS
    if not path.exists():
        return None
    kept = json.loads(path.read_text()).get('asked', {})
    return [name for name in asked if kept.get(name) != asked[name]]


def read_results(folder: Path) -> Dict[str, Any]:
    """What the run of a folder left, as ``run_and_keep`` returned it."""
    return json.loads((folder / RESULTS).read_text())['results']


def run_and_keep(
    folder: Path, asked: Dict[str, Any], run: Callable[[Path], Dict[str, Any]]
) -> Dict[str, Any]:
    """Does a run, and keeps its folder and results.

    It is done in a temporary folder beside it, so neither what a killed run left nor the same
    command, started twice, is in its way. Stopped by the user, it leaves nothing.

    Args:
        folder: The folder; what was there is replaced at the end.
        asked: As for ``differences``.
        run: Does the run in the folder that it is given, and returns its results, fit for JSON.
    """
    temporary = folder.with_name(f'{folder.name}.{uuid.uuid4().hex[:8]}')
    temporary.mkdir(parents=True)
    try:
        results = run(temporary)
    except (KeyboardInterrupt, SystemExit):
        shutil.rmtree(temporary)
        raise
    (temporary / RESULTS).write_text(json.dumps(dict(asked=asked, results=results)))
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return results
