"""Imports the model's libraries, which may not be imported by several threads at the same time.

Python locks each module while it is imported. Threads that enter torchvision by different submodules wait for
each other, whereupon one of them gets an unfinished module.
"""

from __future__ import annotations

from importlib import import_module
from threading import Lock

_lock = Lock()


def import_one_by_one(*names: str) -> None:
    """Imports modules before others import parts of them. Thread-safe."""
    with _lock:
        for name in names:
            import_module(name)
