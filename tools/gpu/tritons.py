"""The versions of Triton that kernels are compiled with, and where each is installed.

Imports the standard library alone: the set-up script reads it.
"""

from pathlib import Path

# Those of torch 2.11 and torch 2.13.
TRITONS = ('3.6.0', '3.7.1')
FOLDER = Path(__file__).resolve().parents[2] / '.venv/triton'
