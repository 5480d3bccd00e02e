"""`tools/app.py`: a page on which visitors try models on images of theirs."""

import runpy
import sys
from pathlib import Path

if __name__ == '__main__':
    script = str(Path(__file__).resolve().parents[1] / 'tools' / 'app.py')
    sys.argv[0] = script
    runpy.run_path(script, run_name='__main__')
