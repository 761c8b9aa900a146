"""Files in the current folder that are named like our packages are never imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sspsam.cli import SAFE_PATH_VARIABLE, main

PACKAGES = ("sspsam", "finetune", "backend", "worker")
ROOT = Path(__file__).parents[1]
STRAY = "raise SystemExit('a stray file was imported')\n"
SPAWNING = """
import multiprocessing, os, sys
from sspsam.cli import main

if __name__ == "__main__":
    sys.argv = ["sspsam", "--version"]
    try:
        main()
    except SystemExit:
        child = multiprocessing.get_context("spawn").Process(target=os.getpid)
        child.start()
        child.join()
        sys.exit(child.exitcode)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a file named like each of our packages, and like a module of the library."""
    current = tmp_path / "current"
    current.mkdir()
    for name in (*PACKAGES, "queue"):
        (current / f"{name}.py").write_text(STRAY)
    monkeypatch.chdir(current)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv(SAFE_PATH_VARIABLE, raising=False)
    return current


def test_python_imports_stray_files_unless_told_not_to(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "worker.queueing.pool"], capture_output=True, text=True)
    assert "a stray file was imported" in done.stderr


def test_every_interpreter_that_we_start_leaves_the_current_folder_alone() -> None:
    starts = [
        (path, option)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for option in re.findall(r"\[\s*sys\.executable,\s*(\S+)", path.read_text(encoding="utf-8"))
    ]
    assert len(starts) >= 5
    assert [path for path, option in starts if option != '"-P",'] == []


def test_processes_that_a_command_spawns_leave_the_current_folder_alone(folder: Path, tmp_path: Path) -> None:
    """Those of multiprocessing, such as readers of training data, import before they know our path."""
    program = tmp_path / "elsewhere" / "program.py"
    program.parent.mkdir()
    program.write_text(SPAWNING)
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_command_run_in_process_leaves_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SAFE_PATH_VARIABLE, raising=False)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert SAFE_PATH_VARIABLE not in os.environ
