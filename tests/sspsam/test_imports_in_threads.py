"""Threads import the model's libraries at the same time: pages read versions while the model is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import threading
import torch
errors = []
barrier = threading.Barrier({count})

def start(statement):
    barrier.wait()
    try:
        exec(statement, {{}})
    except Exception as error:
        errors.append(repr(error))

threads = [threading.Thread(target=start, args=(one,)) for one in {statements!r}]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not errors, errors
"""
STATEMENTS = (
    "from sspsam.phrases import tokenize; tokenize(['the dog'])",
    "import sspsam.checkpoints.bundles",
    "from sspsam import build_model; build_model('ssp-sam-test')",
    "import sspsam.modeling.sam",
)


@pytest.mark.slow
def test_threads_import_in_any_order() -> None:
    program = PROGRAM.format(count=len(STATEMENTS), statements=STATEMENTS)
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
