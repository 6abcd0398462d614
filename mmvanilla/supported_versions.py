"""The versions of torch and of the OpenMMLab packages that mmvanilla works with."""

from importlib.metadata import PackageNotFoundError, version
from typing import Callable, Optional

from packaging.version import Version

# Package: its distributions (the original, the maintained fork), the first version that works, and
# the first that is not supported yet.
SUPPORTED = {
    'torch': (('torch',), '1.13', None),
    'mmengine': (('mmengine', 'onedl-mmengine'), '0.8', '0.11'),
    'mmcv': (('mmcv', 'onedl-mmcv'), '2.0', '3'),
    'mmdet': (('mmdet', 'onedl-mmdetection'), '3.0', '4'),
    'mmpretrain': (('mmpretrain', 'onedl-mmpretrain'), '1.0', '2'),
    'mmseg': (('mmsegmentation', 'onedl-mmsegmentation'), '1.0', '2'),
}
REQUIRED = ('torch', 'mmengine')


def check_versions(version_of: Callable[[str], str] = version) -> None:
    """Checks the installed versions from their metadata, without importing anything.

    Args:
        version_of: Returns the version of a distribution, or raises PackageNotFoundError.

    Raises:
        RuntimeError: naming the version that does not work. It is not an ImportError:
            mmengine's registry would swallow that and report only an unknown type.
    """
    for package, (distributions, first, end) in SUPPORTED.items():
        found = {each: v for each in distributions if (v := installed_version(each, version_of))}
        if not found and package in REQUIRED:
            raise RuntimeError(f'mmvanilla needs {" or ".join(distributions)}: install it first.')
        if len(found) > 1:
            raise RuntimeError(
                f"{' and '.join(found)} are both installed, and overwrite each other's files: "
                'uninstall both, then install one.'
            )
        for name, installed in found.items():
            if Version(installed) < Version(first) or (end and Version(installed) >= Version(end)):
                wanted = f'>={first}' + (f',<{end}' if end else '')
                raise RuntimeError(
                    f'{name} {installed} does not work with mmvanilla: install {name}{wanted}.'
                )


def installed_version(name: str, version_of: Callable[[str], str] = version) -> Optional[str]:
    """The version of a distribution, or None if it is not installed."""
    try:
        return version_of(name)
    except PackageNotFoundError:
        return None
