"""Packaging as OpenMMLab does it: mmvanilla carries its configs, tools and model index."""

import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    scope = {}
    exec((ROOT / 'mmvanilla/version.py').read_text(), scope)
    return scope['__version__']


def add_mim_extension() -> None:
    """Puts configs, tools and the model index into ``mmvanilla/.mim``.

    Links in an editable install, copies in a distribution.
    """
    if not {'develop', 'editable_wheel', 'sdist', 'bdist_wheel'} & set(sys.argv):
        return
    link = bool({'develop', 'editable_wheel'} & set(sys.argv)) and sys.platform != 'win32'
    mim = ROOT / 'mmvanilla/.mim'
    shutil.rmtree(mim, ignore_errors=True)
    mim.mkdir()
    for name in ('configs', 'tools', 'model-index.yml'):
        source = ROOT / name
        if not source.exists():
            continue
        if link:
            (mim / name).symlink_to(Path('../..') / name)
        elif source.is_dir():
            shutil.copytree(source, mim / name, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(source, mim / name)


if __name__ == '__main__':
    add_mim_extension()
    setup(
        name='mmvanilla',
        version=read_version(),
        description='VanillaNet for OpenMMLab: MMDetection, MMPretrain and MMSegmentation',
        long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
        long_description_content_type='text/markdown',
        license='Apache-2.0',
        classifiers=[
            'Programming Language :: Python :: 3.11',
            'Programming Language :: Python :: 3.12',
            'Topic :: Scientific/Engineering :: Artificial Intelligence',
        ],
        keywords='computer vision, object detection, VanillaNet, OpenMMLab',
        python_requires='>=3.11',
        packages=find_packages(include=['mmvanilla', 'mmvanilla.*']),
        package_data={'mmvanilla': ['.mim/**/*']},
        # torch and the OpenMMLab packages are the user's own: two families of them exist under the
        # same import names, and naming either here would overwrite the other.
        install_requires=['packaging'],
        # What mmsegmentation imports and does not name; the fork names it.
        extras_require={
            'segmentation': ['mmsegmentation>=1.2,<2', 'ftfy', 'regex'],
            'onedl-segmentation': ['onedl-mmsegmentation>=1.3,<2'],
            'onnx': ['onnx', 'onnxruntime'],
        },
        zip_safe=False,
    )
