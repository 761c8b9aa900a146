"""What several benchmarks share; importing it lets them use what the tests have."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
