"""The layout of the package, as docs/architecture.md describes it."""

import ast

import pytest
from helpers.programs import ROOT

PACKAGE = ROOT / 'mmvanilla'
# Each folder imports only from itself and from those before it; '' is the top folder.
ROOMS = ('', 'checkpoint', 'models', 'deployment', 'evaluation', 'engine', 'cli')
FILES = [path for path in PACKAGE.rglob('*.py') if '.mim' not in path.parts]


def imported_files(path):
    """The files of the package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            place = path.parents[node.level - 1].joinpath(*(node.module or '').split('.'))
            for name in [alias.name for alias in node.names]:
                candidates = (place.with_suffix('.py'), place / f'{name}.py', place / '__init__.py')
                yield next(each for each in candidates if each in FILES)


IMPORTS = {path: set(imported_files(path)) - {path} for path in FILES}


def test_no_circles():
    left = dict(IMPORTS)
    while leaves := [path for path, needed in left.items() if not needed & left.keys()]:
        for path in leaves:
            del left[path]
    assert not left


def room(path):
    return ROOMS.index(path.relative_to(PACKAGE).parent.as_posix().split('/')[0].replace('.', ''))


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards_and_files_are_short(path):
    if path != PACKAGE / '__init__.py':  # which exports names from the folders below
        assert all(room(each) <= room(path) for each in IMPORTS[path])
    assert len(path.read_text().splitlines()) <= 330


def test_every_room_is_in_the_map():
    page = (ROOT / 'docs/architecture.md').read_text()
    folders = {path.parent for path in FILES} - {PACKAGE}
    for folder in folders:
        name = folder.relative_to(PACKAGE)
        if folder.parent == PACKAGE:
            assert f'`mmvanilla/{name}/`' in page
        elif folder.parent.name == 'models':
            assert f'`{name}/`' in page
