"""Run a script with torchvision's operators declared, without which mmpretrain cannot be imported.

Only for tests: see tools/benchmarking/implementations.py.
"""

import runpy
import sys

from tools.benchmarking.implementations import declare_torchvision_operators

if __name__ == '__main__':
    declare_torchvision_operators()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name='__main__')
