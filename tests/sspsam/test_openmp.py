"""How long threads watch is bounded before torch is there, and never against the operator's will."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
import backend.serve
from sspsam.openmp import watch_briefly

assert "torch" not in sys.modules, "OpenMP would have read the environment already"
watch_briefly()
print(os.environ.get("GOMP_SPINCOUNT"))
"""


def said(**environment: str) -> str:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    rest = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], env=rest | environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_threads_of_the_server_watch_briefly() -> None:
    assert 1_000 < int(said()) < 100_000


@pytest.mark.parametrize(
    ("environment", "looks"),
    [({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "None")],
    ids=["its own number", "a policy"],
)
def test_what_the_environment_says_wins(environment: dict[str, str], looks: str) -> None:
    assert said(**environment) == looks
