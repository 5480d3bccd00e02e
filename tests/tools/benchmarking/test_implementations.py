"""The list of implementations; tests/parity builds those that are installed."""

import subprocess
import sys
from pathlib import Path

from tools.benchmarking.implementations import IMPLEMENTATIONS, packages_by_folder

ROOT = Path(__file__).parents[3]


def test_imports_the_standard_library_alone():
    """The set-up script reads it before anything is installed."""
    code = 'import tools.benchmarking.implementations, sys; print("torch" in sys.modules)'
    result = subprocess.run(
        [sys.executable, '-S', '-c', code], cwd=ROOT, capture_output=True, text=True
    )
    assert result.stdout == 'False\n', result.stderr


def test_packages_of_a_folder_are_listed_once():
    folders = packages_by_folder()
    assert folders['hf'] == ['timm', 'torchvision', 'transformers', 'tokenizers']
    assert set(folders) == {each.folder for each in IMPLEMENTATIONS.values()}
