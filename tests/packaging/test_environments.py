"""The environments that are tested, and what the pages say about them."""

import re
import sys

import pytest
from helpers.programs import ROOT
from packaging.version import Version
from tested_environments import HEAD

from mmvanilla.supported_versions import SUPPORTED

NAMES = sorted(path.parent.name for path in (ROOT / 'requirements').glob('*/python.txt'))
PAGE = (ROOT / 'docs/installation.md').read_text()


def pins(name):
    lines = (ROOT / f'requirements/{name}/constraints.txt').read_text().splitlines()
    return dict(re.split('={2,3}', line) for line in lines if not line.startswith('#'))


def rows():
    """The rows of the table, as dicts."""
    (table,) = re.findall(r'^\| environment \|.*\n\| ---.*\n((?:\|.*\n)*)', PAGE, re.M)
    cells = [line.strip('| ').split(' | ') for line in table.splitlines()]
    return [dict(zip(HEAD, row)) for row in cells]


@pytest.mark.parametrize('name', NAMES)
def test_every_environment_is_in_the_table(name):
    """With the versions that are pinned now, on a Python that it allows."""
    pinned = pins(name)
    wanted = {
        package: next(pinned[each] for each in distributions if each in pinned)
        for package, (distributions, _, _) in SUPPORTED.items()
    }
    mine = [row for row in rows() if row['environment'] == name]
    assert mine
    pythons = (ROOT / f'requirements/{name}/python.txt').read_text().split()
    for row in mine:
        assert {package: row[package].split('+')[0] for package in SUPPORTED} == wanted
        assert row['numpy'] == pinned['numpy']
        assert row['Python'].rpartition('.')[0] in pythons
        assert int(row['tests passed']) > 1000


@pytest.mark.parametrize('name', NAMES)
def test_pinned_versions_are_supported(name):
    pinned = pins(name)
    for distributions, first, end in SUPPORTED.values():
        found = [Version(pinned[each]) for each in distributions if each in pinned]
        assert len(found) == 1 and found[0] >= Version(first)
        assert end is None or found[0] < Version(end)


def test_page_names_the_supported_versions():
    for distributions, first, _ in SUPPORTED.values():
        (line,) = [
            line
            for line in PAGE.split('Older versions')[0].splitlines()
            if line.startswith(f'| {distributions[0]} ')
        ]
        series = first.split('.')[0]
        assert f'>= {first}' in line or f'| {series}.x' in line


def test_new_environment_is_one_that_is_tested():
    """The commands that make an environment on a GPU machine pin what test-torch2.1 pins."""
    commands = PAGE.split('## A new environment')[1].split('## With MIM')[0]
    found = re.findall(r'([a-z-]+)==([\d.]+)', commands)
    assert len(found) >= 9
    pinned = pins('torch2.1')
    assert {name: pinned[name] for name, _ in found} == dict(found)


def test_this_python_is_declared():
    setup = (ROOT / 'setup.py').read_text()
    first, end = map(int, re.search(r'range\((\d+), (\d+)\)', setup).groups())
    assert first <= sys.version_info.minor < end
    assert f"python_requires='>=3.{first}'" in setup
    assert f'| Python | 3.{first} to 3.{end - 1} |' in PAGE
