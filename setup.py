"""Packaging as OpenMMLab does it: mmvanilla carries its configs, tools and model index."""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.develop import develop

ROOT = Path(__file__).resolve().parent
REPOSITORY = 'https://github.com/mmvanilla/mmvanilla'
CARRIED = ('configs', 'tools', 'model-index.yml')  # in mmvanilla/.mim, where MIM looks for them


def read_version() -> str:
    scope = {}
    exec((ROOT / 'mmvanilla/version.py').read_text(), scope)
    return scope['__version__']


def read_description() -> str:
    """The README, with addresses in place of paths in the repository."""
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    for start, kind in ((r'!\[[^\]]*\]\(', 'raw'), (r'(?<!!)\[[^\]]*\]\(', 'blob')):
        text = re.sub(rf'({start})(?!https?:|#)', rf'\g<1>{REPOSITORY}/{kind}/main/', text)
    return text


def put_into(mim: Path, link: bool) -> None:
    """Puts what the package carries into a folder, as links or as copies."""
    shutil.rmtree(mim, ignore_errors=True)
    mim.mkdir(parents=True)
    for name in CARRIED:
        if link:
            (mim / name).symlink_to(Path(os.path.relpath(ROOT, mim), name))
        elif (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, mim / name, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(ROOT / name, mim / name)


def put_into_sources() -> None:
    """For an editable install; Windows lets only administrators make links."""
    put_into(ROOT / 'mmvanilla/.mim', link=os.name != 'nt')


class BuildPy(build_py):
    """Adds ``.mim``: copies to a wheel, without touching the links of an editable install."""

    def run(self) -> None:
        if getattr(self, 'editable_mode', False):
            super().run()
            put_into_sources()
            return
        built = Path(self.build_lib, 'mmvanilla')
        shutil.rmtree(built, ignore_errors=True)  # of an earlier build
        super().run()
        put_into(built / '.mim', link=False)


class Develop(develop):
    """Adds ``.mim`` where pip makes an editable install without ``build_py``."""

    def run(self) -> None:
        super().run()
        put_into_sources()


if __name__ == '__main__':
    setup(
        name='mmvanilla',
        version=read_version(),
        description='VanillaNet for OpenMMLab: MMDetection, MMPretrain and MMSegmentation',
        long_description=read_description(),
        long_description_content_type='text/markdown',
        author='The mmvanilla contributors',
        url=REPOSITORY,
        project_urls={
            'Documentation': f'{REPOSITORY}/tree/main/docs',
            'Changelog': f'{REPOSITORY}/blob/main/CHANGELOG.md',
            'Issues': f'{REPOSITORY}/issues',
            'Paper': 'https://arxiv.org/abs/2305.12972',
        },
        license='Apache-2.0',
        classifiers=[
            'License :: OSI Approved :: Apache Software License',
            *(f'Programming Language :: Python :: 3.{minor}' for minor in range(8, 14)),
            'Topic :: Scientific/Engineering :: Artificial Intelligence',
        ],
        keywords='computer vision, object detection, VanillaNet, OpenMMLab',
        python_requires='>=3.8',
        packages=find_packages(include=['mmvanilla', 'mmvanilla.*']),
        cmdclass={'build_py': BuildPy, 'develop': Develop},
        # torch and the OpenMMLab packages are the user's own: two families of them exist under the
        # same import names, and naming either here would overwrite the other.
        install_requires=['packaging'],
        # What mmsegmentation imports and does not name; the fork names it.
        extras_require={
            'segmentation': ['mmsegmentation>=1.0,<2', 'ftfy', 'regex'],
            'onedl-segmentation': ['onedl-mmsegmentation>=1.3,<2'],
            # What tools/deploy.py exports to. Not mmdeploy, whose dependencies would bring back an
            # old protobuf: pip install --no-deps mmdeploy.
            'deploy': ['onnx', 'onnxruntime', 'aenum', 'multiprocess'],
            'openvino': ['openvino>=2024.4', 'nncf>=2.13'],
        },
        zip_safe=False,
    )
