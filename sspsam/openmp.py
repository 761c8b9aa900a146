"""How long PyTorch's threads watch for the next operation, before they sleep.

GNU OpenMP lets them watch for milliseconds, each on a core that others would work on meanwhile. The next
operation of a forward pass comes within microseconds.

Source: GOMP_SPINCOUNT in the manual of libgomp.
"""

from __future__ import annotations

import os

LOOKS = "10000"
"""How often they look: a thirtieth of libgomp's own number."""


def watch_briefly() -> None:
    """Bounds it for this process and those that it starts, unless their environment says how to wait.

    To be called before torch is imported: OpenMP reads the environment once.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", LOOKS)
