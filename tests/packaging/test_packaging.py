"""What the wheel and the source distribution hold."""

import re
import subprocess
import tarfile
import zipfile

import pytest
from helpers.programs import ROOT, build_distribution

CARRIED = ('configs', 'tools', 'model-index.yml')


def link_mim(source):
    """What an editable install leaves in a clone."""
    mim = source / 'mmvanilla/.mim'
    mim.mkdir()
    for name in CARRIED:
        (mim / name).symlink_to(f'../../{name}')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('distributions')


@pytest.fixture(scope='module')
def wheel(folder):
    return zipfile.ZipFile(build_distribution(folder / 'wheel', 'bdist_wheel', link_mim))


@pytest.fixture(scope='module')
def metadata(wheel):
    return wheel.read(next(name for name in wheel.namelist() if name.endswith('METADATA'))).decode()


def listed_by_git():
    result = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return list(filter(None, result.stdout.split('\0')))


def test_wheel_carries_configs_and_tools(wheel, folder):
    """In .mim, even if it is built in a clone with an editable install, whose links stay."""
    names = set(wheel.namelist())
    expected = ['configs/retinanet_vanillanet13.py', 'tools/train.py', 'tools/dist_train.sh']
    expected += ['model-index.yml', 'configs/imagenet/metafile.yml']
    assert {f'mmvanilla/.mim/{name}' for name in expected} <= names
    assert {'mmvanilla/version.py', 'mmvanilla/cli/options.py'} <= names
    assert not any('__pycache__' in name for name in names)
    source = folder / 'wheel/source'
    assert all((source / 'mmvanilla/.mim' / name).is_symlink() for name in CARRIED)


def test_a_second_wheel_holds_nothing_of_the_first(tmp_path):
    def leave_an_old_build(source):
        for name in ('mmvanilla/gone.py', 'mmvanilla/.mim/configs/gone.py'):
            (source / 'build/lib' / name).parent.mkdir(parents=True, exist_ok=True)
            (source / 'build/lib' / name).write_text('')

    wheel = build_distribution(tmp_path, 'bdist_wheel', leave_an_old_build)
    assert not any('gone' in name for name in zipfile.ZipFile(wheel).namelist())


def test_wheel_requires_neither_torch_nor_an_openmmlab_package(metadata):
    required = [line for line in metadata.splitlines() if line.startswith('Requires-Dist')]
    assert [line for line in required if 'extra ==' not in line] == ['Requires-Dist: packaging']


def test_metadata_lead_to_the_project(metadata):
    head, _, description = metadata.partition('\n\n')
    assert re.search('^Author: .+', head, re.M) and re.search('^Home-page: https://', head, re.M)
    for name in ('Documentation', 'Changelog', 'Issues'):
        assert re.search(f'^Project-URL: {name}, https://', head, re.M)
    links = re.findall(r'\]\(([^)]+)\)', description)
    assert len(links) > 20 and all(link.startswith('https://') for link in links)
    pictures = re.findall(r'!\[[^\]]*\]\(([^)]+)\)', description)
    assert pictures and all('/raw/main/docs/' in link for link in pictures)


def test_source_distribution_is_complete(tmp_path):
    with tarfile.open(build_distribution(tmp_path, 'sdist')) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    needed = {name for name in listed_by_git() if not name.startswith(('.ci/', '.gitignore'))}
    needed |= {'Makefile', 'docs/installation.md', 'tests/conftest.py', 'requirements/tests.txt'}
    assert needed <= names


def test_repository_holds_no_large_files():
    for name in listed_by_git():
        assert (ROOT / name).stat().st_size < 2**20, name
