import subprocess
import zipfile

from helpers.programs import ROOT, build_wheel


def test_wheel_carries_configs_and_tools(tmp_path):
    """The wheel has them in .mim, and requires neither torch nor an OpenMMLab package."""
    archive = zipfile.ZipFile(build_wheel(tmp_path))
    names = set(archive.namelist())
    expected = ['configs/retinanet_vanillanet13.py', 'tools/train.py', 'tools/dist_train.sh']
    expected += ['model-index.yml', 'configs/imagenet/metafile.yml']
    assert {f'mmvanilla/.mim/{name}' for name in expected} <= names
    metadata = archive.read(next(n for n in names if n.endswith('METADATA'))).decode()
    required = [line for line in metadata.splitlines() if line.startswith('Requires-Dist')]
    assert [line for line in required if 'extra ==' not in line] == ['Requires-Dist: packaging']


def test_repository_holds_no_large_files():
    listed = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split('\0')):
        assert (ROOT / name).stat().st_size < 2**20, name
