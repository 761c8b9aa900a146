"""Processes started by tests react to signals and are stopped, regardless of how the tests were started."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SLEEP = [sys.executable, "-c", "import time\nprint(flush=True)\nwhile True: time.sleep(0.1)"]
"""In short sleeps: Python handles a SIGINT that arrives right before a sleep after it."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_started_process_ends_at_a_signal(number: signal.Signals) -> None:
    with subprocess.Popen(SLEEP, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(20) == (-number)


@pytest.mark.slow
def test_signals_that_are_ignored_or_blocked_where_tests_start_change_nothing() -> None:
    tests = f"{Path(__file__).relative_to(ROOT)}::{test_a_started_process_ends_at_a_signal.__name__}"
    start = (
        "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT]);"
        f"os.execv(sys.executable, [sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', {tests!r}])"
    )
    command = ["sh", "-c", "trap '' INT HUP QUIT; exec \"$@\"", "sh", sys.executable, "-c", start]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


@pytest.mark.slow
def test_a_process_that_a_failed_test_leaves_is_ended(pytester_file: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(pytester_file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "1 failed, 1 passed" in done.stdout


@pytest.fixture
def pytester_file(tmp_path: Path) -> Path:
    """Two tests with the fixture of all tests: one fails with a process running, one looks for it."""
    path = tmp_path / "test_leaves.py"
    path.write_text(
        "import psutil, subprocess, sys\n"
        "from tests.conftest import end_started_processes\n"  # the file is outside of tests/
        "def test_leaves():\n"
        f"    subprocess.Popen({SLEEP!r})\n"
        "    raise AssertionError\n"
        "def test_looks():\n"
        "    assert not [p for p in psutil.Process().children() if 'time.sleep' in str(p.cmdline())]\n"
    )
    return path
