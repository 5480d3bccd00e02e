"""Lets mmseg be imported with an mmcv that has no compiled operators, which a UperNet never calls.

Some of mmseg's modules, and all of mmcv.ops, import the extension `mmcv._ext` when they are
imported, whether or not a model uses it. Where mmcv has none, as mmcv-lite, this stands in for it:
operators written in Python (point_sample) work, and a compiled one (nms) raises when it is called.
"""

import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

EXTENSION = 'mmcv._ext'


class _MissingOperators(ModuleType):
    """The extension's stand-in: whatever is looked up is a function that raises."""

    def __getattr__(self, name: str) -> Callable:
        if name.startswith('__'):
            raise AttributeError(name)

        def missing(*args: object, **kwargs: object) -> NoReturn:
            from tools.utils.errors import UserError  # needs torch, which the set-up has not

            raise UserError(
                f"the model needs mmcv's compiled operator '{name}', and mmcv is installed "
                'without its operators: run `make env`, with STACK=onedl for the forks, or see '
                'docs/installation.md'
            )

        return missing

    # mmcv reports these with the environment.
    @staticmethod
    def get_compiler_version() -> str:
        return 'n/a'

    @staticmethod
    def get_compiling_cuda_version() -> str:
        return 'n/a'


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, fullname, path=None, target=None):
        return ModuleSpec(fullname, self) if fullname == EXTENSION else None

    def create_module(self, spec):
        return _MissingOperators(spec.name)

    def exec_module(self, module):
        pass


def allow_missing_operators() -> None:
    """Let `mmcv.ops` be imported where mmcv has no compiled operators.

    Where it has them, they are found first, and nothing changes.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
