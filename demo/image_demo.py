"""`tools/predict.py` under the name that it has in mmdet and mmseg."""

import runpy
import sys
from pathlib import Path

if __name__ == '__main__':
    script = str(Path(__file__).resolve().parents[1] / 'tools' / 'predict.py')
    sys.argv[0] = script
    runpy.run_path(script, run_name='__main__')
