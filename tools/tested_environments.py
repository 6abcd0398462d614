"""Writes the table in docs/installation.md, from the environments in which `make test` passed here.

`make test` and `make test-NAME` leave their result in the environment's folder. A row replaces that
of the same environment and Python; the others stay.
"""

import re
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Dict, List, Optional
from xml.etree import ElementTree

from mmvanilla.cli.tables import markdown_lines
from mmvanilla.supported_versions import SUPPORTED

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs/installation.md'
HEAD = ['environment', 'date', 'Python', *SUPPORTED, 'numpy', 'tests passed', 'skipped']
DEFAULT = 'openmmlab'  # in .venv
ITS_OWN_TEST = 'test_every_environment_is_in_the_table'  # fails until it has new versions


def read_row(venv: Path) -> Optional[List[str]]:
    """The row of an environment; None if its tests did not run to their end, or did not pass."""
    folders = list(venv.glob('lib/python*/site-packages'))
    try:
        suite = ElementTree.parse(venv / 'tests.xml').getroot()[0]
    except (FileNotFoundError, ElementTree.ParseError):
        return None
    cases = suite.findall('testcase')
    kinds = {case: {each.tag for each in case} for case in cases}
    failed = [case.get('name') for case in cases if {'failure', 'error'} & kinds[case]]
    if not (folders and cases) or any(not name.startswith(ITS_OWN_TEST) for name in failed):
        return None
    skipped = sum('skipped' in each for each in kinds.values())
    found: Dict[str, str] = {
        each.metadata['Name'].lower(): each.version
        for each in distributions(path=list(map(str, folders)))
    }
    names = {**{name: row[0] for name, row in SUPPORTED.items()}, 'numpy': ('numpy',)}
    return [
        re.sub(r'^\.venv-?', '', venv.name) or DEFAULT,
        suite.get('timestamp')[:10],
        re.search(r'version = (\S+)', (venv / 'pyvenv.cfg').read_text())[1],
        *(next((found[each] for each in names[name] if each in found), '') for name in names),
        str(len(cases) - skipped - len(failed)),
        str(skipped),
    ]


def stays(row: List[str], new: List[str]) -> bool:
    """Whether an older row is of the same packages as a new one, on another Python."""
    pythons = [each[2].rpartition('.')[0] for each in (row, new)]
    return row[3:-2] == new[3:-2] and pythons[0] != pythons[1]


def main() -> None:
    text = PAGE.read_text(encoding='utf-8')
    start = text.index(next(markdown_lines(HEAD, [])))
    end = text.index('\n\n', start)
    rows = [line.strip('| ').split(' | ') for line in text[start:end].splitlines()[2:]]
    new = [row for row in map(read_row, sorted(ROOT.glob('.venv*'))) if row]
    if not new:
        sys.exit('error: no environment here passed its tests: run make test first.')
    replaced = {row[0]: row for row in new}
    rows = [row for row in rows if row[0] not in replaced or stays(row, replaced[row[0]])] + new
    table = '\n'.join(markdown_lines(HEAD, sorted(rows)))
    PAGE.write_text(text[:start] + table + text[end:], encoding='utf-8')
    print(table)


if __name__ == '__main__':
    main()
