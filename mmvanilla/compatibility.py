"""Which versions of torch and of the two OpenMMLab package families can work."""

from importlib.metadata import PackageNotFoundError, version
from typing import Callable, Optional

from packaging.version import Version

# Package: (its distributions, original first and maintained fork second), first and last+1 version.
SUPPORTED = {
    'torch': (('torch',), '2.6', None),  # reads checkpoints with an allow-list of our choice
    'mmengine': (('mmengine', 'onedl-mmengine'), '0.10', '0.11'),
    'mmcv': (('mmcv', 'onedl-mmcv'), '2.0', '3'),
    'mmdet': (('mmdet', 'onedl-mmdetection'), '3.0', '4'),
    'mmpretrain': (('mmpretrain', 'onedl-mmpretrain'), '1.0', '2'),
    'mmseg': (('mmsegmentation', 'onedl-mmsegmentation'), '1.0', '2'),
}
REQUIRED = ('torch', 'mmengine')


def check_versions(version_of: Callable[[str], str] = version) -> None:
    """Checks what is installed, by its metadata: nothing is imported for it.

    Args:
        version_of: Gives the version of a distribution, or raises PackageNotFoundError.

    Raises:
        RuntimeError: naming the version that cannot work (not ImportError: mmengine's registry
            swallows that while it imports a scope, and then only reports an unknown type).
    """
    for package, (distributions, first, end) in SUPPORTED.items():
        found = {name: v for name in distributions if (v := _installed(name, version_of))}
        if not found and package in REQUIRED:
            raise RuntimeError(f'mmvanilla needs {" or ".join(distributions)}: install it first.')
        if len(found) > 1:
            raise RuntimeError(
                f'{" and ".join(found)} are both installed and overwrite each other: '
                'uninstall both, then install one.'
            )
        for name, installed in found.items():
            if Version(installed) < Version(first) or (end and Version(installed) >= Version(end)):
                wanted = f'>={first}' + (f',<{end}' if end else '')
                raise RuntimeError(
                    f'{name} {installed} cannot work with mmvanilla: install {name}{wanted}.'
                )


def let_configs_find_the_fork(version_of: Callable[[str], str] = version) -> None:
    """Makes ``mmseg::`` bases resolve with onedl-mmsegmentation.

    onedl-mmengine looks for a distribution called mmsegmentation, which is then not installed.
    """
    if _installed('onedl-mmengine', version_of):
        from mmengine.config.utils import MODULE2PACKAGE

        MODULE2PACKAGE['mmseg'] = 'mmseg'


def _installed(name: str, version_of: Callable[[str], str]) -> Optional[str]:
    try:
        return version_of(name)
    except PackageNotFoundError:
        return None
