"""Packaging: `pip install .` or `pip install -e .`."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read_version() -> str:
    """The version, read without importing the package: torch may not be there yet."""
    scope: dict = {}
    exec((ROOT / 'swinv2_backbone' / 'version.py').read_text(), scope)
    return scope['__version__']


setup(
    name='swinv2_backbone',
    version=read_version(),
    description='SwinV2 as a multi-scale backbone for mmdet, mmseg and mmpretrain',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE', 'NOTICE'],
    packages=find_packages(include=['swinv2_backbone', 'swinv2_backbone.*']),
    package_data={'swinv2_backbone': ['py.typed']},
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
        # tools/deployment/export_onnx.py
        'onnx': ['onnx', 'onnxscript', 'onnxruntime'],
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
