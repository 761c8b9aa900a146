"""Ends the parts of a supervisor that was killed: `python -m worker.local.guardian`, started by Supervisor.

The supervisor holds the write end of its standard input, and writes a line for each part: the process id of
its session. The system closes the pipe however the supervisor ends. The parts and all processes of their
sessions then get SIGTERM, and SIGKILL if they need more than GRACE_S.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable

import psutil

GRACE_S = 5.0
POLL_S = 0.1


def main() -> None:
    """Blocks until the supervisor has gone; returns once its parts have gone too."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    leaders: list[psutil.Process] = []
    for line in sys.stdin:
        try:
            leaders.append(psutil.Process(int(line)))
        except (ValueError, psutil.NoSuchProcess):
            continue
    end_all(leaders)


def end_all(leaders: Iterable[psutil.Process]) -> None:
    """Ends session leaders with their descendants and the other processes of their sessions."""
    left = _family(leaders)
    for process in left:
        _send(process, signal.SIGTERM)
    until = time.monotonic() + GRACE_S
    while left and time.monotonic() < until:
        time.sleep(POLL_S)
        left = {process for process in left if _runs(process)}
    for process in left:
        _send(process, signal.SIGKILL)


def _family(leaders: Iterable[psutil.Process]) -> set[psutil.Process]:
    family: set[psutil.Process] = set()
    sessions = set()
    for leader in leaders:
        sessions.add(leader.pid)
        if _runs(leader):
            family |= {leader, *leader.children(recursive=True)}
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) in sessions:
                family.add(process)
        except (ProcessLookupError, PermissionError):
            continue
    return family


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return


if __name__ == "__main__":
    main()
