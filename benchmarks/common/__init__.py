"""Code shared by benchmarks; importing it makes the tests' helpers importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
