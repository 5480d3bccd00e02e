"""Packaging: `pip install .` or `pip install -e .`."""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


def read_version() -> str:
    """The version, read without importing the package: torch may not be there yet."""
    scope: dict = {}
    exec((ROOT / 'swinv2_backbone' / 'version.py').read_text(), scope)
    return scope['__version__']


def read_description() -> str:
    """README.md; for PyPI, where REPOSITORY_URL is set, with addresses for paths."""
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    url = os.environ.get('REPOSITORY_URL', '').rstrip('/')
    if not url:
        return text

    def address(match: re.Match) -> str:
        view = 'raw' if match[1] == '!' else 'blob'  # an image itself, or the page of a file
        return f'{match[1]}{match[2]}({url}/{view}/v{read_version()}/{match[3]})'

    return re.sub(r'(!?)(\[[^\]]*\])\((?!\w+:|#)([^)]+)\)', address, text)


class BuildWithTools(build_py):
    """Puts configs and tools into the package too, into `.mim` as OpenMMLab's packages do.

    An editable installation has none: there they are beside the package.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / 'swinv2_backbone' / '.mim'
        shutil.rmtree(target, ignore_errors=True)
        for name in ('configs', 'tools'):
            shutil.copytree(
                ROOT / name, target / name, ignore=shutil.ignore_patterns('__pycache__', '*.pyc')
            )
        for index in ROOT.glob('model-index.yml'):
            shutil.copy(index, target)


setup(
    name='swinv2_backbone',
    version=read_version(),
    description='SwinV2 as a multi-scale backbone for mmdet, mmseg and mmpretrain',
    long_description=read_description(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE', 'NOTICE'],
    packages=find_packages(include=['swinv2_backbone', 'swinv2_backbone.*']),
    package_data={'swinv2_backbone': ['py.typed']},
    cmdclass={'build_py': BuildWithTools},
    python_requires='>=3.11',
    # torch alone: were mmengine, mmcv, mmdet or mmseg listed here, pip would lay the official
    # files over those of a maintained fork, which has the same import names.
    install_requires=['torch>=2.7'],
    extras_require={
        'openmmlab': [
            'mmengine>=0.10.7,<1.0',
            'mmcv>=2.0.0rc4,<2.2.0',  # what mmdet 3.3.0 and mmsegmentation 1.2.2 accept
            'mmdet>=3.3.0,<4.0',
            'mmsegmentation>=1.2.2,<2.0',
            'ftfy',  # mmsegmentation imports these two without declaring them
            'regex',
        ],
        # Checkpoints in safetensors, and hf:// addresses.
        'hub': ['safetensors', 'huggingface_hub'],
        # tools/deployment/export.py; the operator Attention came with onnxruntime 1.23.
        'onnx': ['onnx', 'onnxscript', 'onnxruntime>=1.23'],
        # The same with OpenVINO, and with int8.
        'deploy': ['onnx', 'onnxscript', 'onnxruntime>=1.23', 'openvino', 'nncf'],
        # tools/train.py --vis
        'vis': ['tensorboard', 'wandb'],
        # The site; `make docs` installs these alone.
        'docs': ['mkdocs-material', 'mkdocstrings[python]', 'ruff'],
        # tools/app.py
        'demo': ['gradio>=6,<7'],
        'dev': [
            'pytest',
            'pytest-xdist',
            'pytest-cov',
            'hypothesis',
            'ruff',
            'codespell',
            'import-linter',
            'mypy',
            "triton; sys_platform == 'linux'",  # interpreted, the kernels are tested without a GPU
        ],
    },
)
