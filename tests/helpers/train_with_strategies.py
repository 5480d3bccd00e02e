"""One process of several that train with each strategy; see scaling.train_with_strategies."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.helpers.scaling import train_with_strategies

train_with_strategies(Path(sys.argv[1]))
