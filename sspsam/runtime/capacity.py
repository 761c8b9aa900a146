"""Memory that this machine, or the container, has left for a model."""

from __future__ import annotations

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def available_memory_bytes(cgroup: Path = CGROUP) -> int:
    """Memory that can be used without swapping: the machine's, or less if a container limits it.

    Args:
        cgroup: folder of the container's limits (cgroup v2).
    """
    free = psutil.virtual_memory().available
    limit, used = (_number(cgroup / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return free
    return max(0, min(free, limit - used + _file_cache(cgroup)))


def gpu_memory_bytes(device: str) -> int:
    """Memory of the GPU that a device setting selects; 0 without one.

    Args:
        device: auto, cpu, cuda or cuda:<number>.
    """
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return 0
    index = torch.device("cuda" if device == "auto" else device).index or 0
    return int(torch.cuda.get_device_properties(index).total_memory)


def _number(path: Path) -> int | None:
    """A limit; None if there is none: cgroup v2 writes `max`."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _file_cache(cgroup: Path) -> int:
    """Cached pages of files, which count as used and are given up on demand."""
    try:
        lines = (cgroup / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    values = dict(line.split() for line in lines if len(line.split()) == 2)
    return int(values.get("inactive_file", 0))
