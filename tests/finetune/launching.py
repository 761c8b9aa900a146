"""Starts processes like `accelerate launch` and torchrun, each with its rank in the environment."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""Programs may import the tests."""
TIMEOUT_S = 240


def launch(count: int, program: Path, *arguments: str) -> list[str]:
    """Runs a Python program in several processes on the CPU; returns what each printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    running = [
        subprocess.Popen(
            [sys.executable, str(program), *arguments],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    outputs = [process.communicate(timeout=TIMEOUT_S) for process in running]
    failures = [err for process, (_, err) in zip(running, outputs, strict=True) if process.returncode]
    assert not failures, failures[0]
    return [out for out, _ in outputs]
