"""A job that needs the model gives way to the backend on the same machine, on which annotators wait.

Its priority is low, and its computations use some of the cores (TRAINING_NICE, TRAINING_CORES), by default
all but one: two processes with one thread per core slow each other down many times over, because the threads
of each wait for one another.

Linux with autogroup scheduling divides the processor among sessions first; priorities count within a session
only. So the session's own priority is lowered as well.

Sources: sched(7), "The autogroup feature"; setpriority(2).
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

AUTOGROUP = Path("/proc/self/autogroup")
"""Priority of this process's session; absent where the kernel has no such scheduling."""
THREADS_VARIABLE = "OMP_NUM_THREADS"


def lower_priority(niceness: int) -> None:
    """Lowers the priority of this process and of its session, for processes started later, too.

    Args:
        niceness: 0 leaves the priority as it is, 19 is the lowest.
    """
    os.setpriority(os.PRIO_PROCESS, 0, max(niceness, os.getpriority(os.PRIO_PROCESS, 0)))
    with suppress(OSError):  # not on this system, or refused within a container
        AUTOGROUP.write_text(str(niceness))


def limit_threads(environment: MutableMapping[str, str], cores: int) -> None:
    """Sets the number of threads in the environment of a process, unless it is set already.

    Args:
        environment: Of the process.
        cores: Number of cores; 0: all but one.
    """
    environment.setdefault(THREADS_VARIABLE, str(cores or max(1, usable_cores() - 1)))


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
