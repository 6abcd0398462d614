import pytest
import tested_environments
from mmengine.utils import mkdir_or_exist

from mmvanilla.cli.tables import markdown_lines

VERSIONS = {
    **{'torch': '2.1.2', 'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmdet': '3.3.0'},
    **{'mmpretrain': '1.2.0', 'mmsegmentation': '1.2.2', 'numpy': '1.26.4'},
}
PASSED = '<testcase classname="tests.a" name="test_a"/>' * 3
SKIPPED = '<testcase classname="tests.a" name="test_b"><skipped/></testcase>'
FAILED = '<testcase classname="tests.a" name="test_c"><failure message="no"/></testcase>'
OF_THE_TABLE = FAILED.replace('test_c', 'test_every_environment_is_in_the_table[onedl]')
OLD = [
    ['onedl', '2026-01-01', '3.11.7', *['1'] * 9],
    ['torch2.1', '2026-01-01', '3.10.1', *['1'] * 9],
    ['torch2.1', '2026-01-01', '3.9.1', *VERSIONS.values(), '1', '1'],
    ['torch2.1', '2026-01-01', '3.8.1', *['1'] * 9],  # of other packages
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A clone with a page and the environment torch2.1; without what its tests found."""
    site_packages = tmp_path / '.venv-torch2.1/lib/python3.10/site-packages'
    for name, version in VERSIONS.items():
        mkdir_or_exist(site_packages / f'{name}-{version}.dist-info')
        metadata = f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
        (site_packages / f'{name}-{version}.dist-info/METADATA').write_text(metadata)
    (tmp_path / '.venv-torch2.1/pyvenv.cfg').write_text('home = /usr/bin\nversion = 3.10.13\n')
    (tmp_path / '.venv').mkdir()  # its tests did not run
    page = tmp_path / 'installation.md'
    table = '\n'.join(markdown_lines(tested_environments.HEAD, OLD))
    page.write_text(f'Before.\n\n{table}\n\nAfter.\n')
    monkeypatch.setattr(tested_environments, 'ROOT', tmp_path)
    monkeypatch.setattr(tested_environments, 'PAGE', page)
    return tmp_path


def run(folder, cases):
    (folder / '.venv-torch2.1/tests.xml').write_text(
        '<testsuites><testsuite name="pytest" timestamp="2026-11-25T15:00:00.1">'
        f'{cases}</testsuite></testsuites>'
    )
    tested_environments.main()
    return (folder / 'installation.md').read_text()


@pytest.mark.parametrize('failed', ['', OF_THE_TABLE])
def test_a_row_is_replaced(folder, failed):
    text = run(folder, PASSED + SKIPPED + failed)
    new = ['torch2.1', '2026-11-25', '3.10.13', *VERSIONS.values(), '3', '1']
    table = '\n'.join(markdown_lines(tested_environments.HEAD, [OLD[0], OLD[2], new]))
    assert text == f'Before.\n\n{table}\n\nAfter.\n'


@pytest.mark.parametrize('cases', [PASSED + FAILED, '', '<'])
def test_only_what_passed_is_written(folder, cases):
    before = (folder / 'installation.md').read_text()
    with pytest.raises(SystemExit, match='no environment here passed its tests'):
        run(folder, cases)
    assert (folder / 'installation.md').read_text() == before
