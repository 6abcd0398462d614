from importlib.metadata import PackageNotFoundError

import pytest
from helpers.programs import run_python

from mmvanilla.supported_versions import check_versions

ORIGINALS = dict(torch='2.8.0', mmengine='0.10.7', mmcv='2.1.0', mmdet='3.3.0', mmpretrain='1.2.0')
FORK = {
    'torch': '2.8.0+cpu',
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmdetection': '3.5.1',
    'onedl-mmpretrain': '1.3.6',
}


def check(installed):
    def version_of(name):
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    check_versions(version_of)


@pytest.mark.parametrize('family', [ORIGINALS, FORK, dict(torch='1.13.1', mmengine='0.8.5')])
def test_supported(family):
    check(family)


@pytest.mark.parametrize(
    ('family', 'change', 'message'),
    [
        (ORIGINALS, {'torch': '1.12.1'}, r'torch 1\.12\.1 does not work.*torch>=1\.13'),
        (
            ORIGINALS,
            {'mmengine': '0.7.4'},
            r'mmengine 0\.7\.4 does not work.*mmengine>=0\.8,<0\.11',
        ),
        (ORIGINALS, {'mmdet': '2.28.2'}, r'mmdet 2\.28\.2 does not work'),
        (ORIGINALS, {'mmpretrain': '0.25.0'}, r'mmpretrain 0\.25\.0'),
        (FORK, {'onedl-mmengine': '0.7.0'}, r'onedl-mmengine 0\.7\.0 does not work'),
        (FORK, {'onedl-mmdetection': '2.0'}, r'onedl-mmdetection 2\.0 does not work'),
        (
            ORIGINALS,
            {'onedl-mmengine': '0.10.12'},
            'mmengine and onedl-mmengine are both installed',
        ),
    ],
)
def test_unsupported(family, change, message):
    with pytest.raises(RuntimeError, match=message):
        check({**family, **change})


def test_missing_mmengine():
    with pytest.raises(RuntimeError, match='needs mmengine or onedl-mmengine'):
        check(dict(torch='2.8.0'))


def test_import_is_light():
    """Importing mmvanilla does not import mmdet, mmpretrain or mmcv."""
    code = (
        'import sys, mmvanilla; print(sorted({"mmdet", "mmpretrain", "mmcv"} & set(sys.modules)))'
    )
    assert run_python('-c', code).strip().endswith('[]')
