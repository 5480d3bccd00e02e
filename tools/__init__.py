"""The tools. They run with an mmcv that has no compiled operators, where a model needs none."""

from tools.utils.missing_operators import allow_missing_operators

allow_missing_operators()
