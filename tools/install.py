"""Installs locked requirements into a virtual environment, with brief progress instead of pip's output.

    python tools/install.py .venv "the service" requirements-torch.lock requirements.lock

pip's output goes to VENV/install.log; on failure, its last lines are shown.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

LOG = "install.log"
EVERY_S = 15.0
TAIL_LINES = 25
ENTRY = re.compile(r"^[a-z0-9][\w-]*==", re.MULTILINE)
SEEN = re.compile(
    r"(?:Collecting|Processing|Requirement already satisfied:|Ignoring) (?:\S*/)?(?P<name>[A-Za-z]\w*)"
)
"""Line with which pip starts on a package."""


def run_pip(python: Path, arguments: list[str], log: Path, what: str, total: int) -> None:
    """Runs pip and prints periodic progress out of `total` packages.

    Raises:
        SystemExit: pip failed.
    """
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    command += ["--progress-bar=off", *arguments]
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    began_s = said_s = time.monotonic()
    seen = 0
    print(f"Installing {what}", flush=True)
    with log.open("a", encoding="utf-8") as file:
        print(f"$ {' '.join(command)}", file=file, flush=True)
        pipe = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert pipe.stdout is not None
        for line in pipe.stdout:
            print(line, end="", file=file, flush=True)
            tail.append(line)
            found = SEEN.match(line)
            seen += found is not None
            if found and time.monotonic() - said_s >= EVERY_S:
                said_s = time.monotonic()
                duration = f"{said_s - began_s:.0f} s"
                print(f"  {what}: {seen} of {total} in {duration} ({found['name']})", flush=True)
            if total and line.startswith("Installing collected packages"):
                print(f"  {what}: unpacking", flush=True)
    if pipe.wait() != 0:
        sys.exit(f"{''.join(tail)}pip could not install {what}; its full output is in {log}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("venv", type=Path)
    parser.add_argument("what", help="description for the output")
    parser.add_argument("locks", nargs="*", help="requirement files with hashes")
    parser.add_argument("--project", action="store_true", help="also install this repository, editable")
    arguments = parser.parse_args()
    python, log = arguments.venv / "bin/python", arguments.venv / LOG
    files = [f"--requirement={lock}" for lock in arguments.locks]
    total = sum(len(ENTRY.findall(Path(lock).read_text(encoding="utf-8"))) for lock in arguments.locks)
    began_s = time.monotonic()
    run_pip(python, ["--no-deps", "--require-hashes", *files], log, arguments.what, total)
    if arguments.project:
        editable = ["--no-deps", "--no-build-isolation", "--editable", "."]
        run_pip(python, editable, log, "the project itself", 0)
    print(f"Installed {arguments.what} in {time.monotonic() - began_s:.0f} s: {log}", flush=True)


if __name__ == "__main__":
    main()
