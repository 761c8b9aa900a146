"""Memory that was freed is taken again, and not asked of the system once more."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from sspsam.allocation import MEBIBYTE, OWN_SETTINGS

BLOCK = 8 * MEBIBYTE
ROUNDS = 20
PROGRAM = f"""
import ctypes, resource
from sspsam.allocation import keep_freed_memory

c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
print(keep_freed_memory({4 * BLOCK}) if {{keep}} else None)

def use():
    blocks = [c.malloc(ctypes.c_size_t({{size}})) for _ in range(2)]
    for block in blocks:
        c.memset(ctypes.c_void_p(block), 1, ctypes.c_size_t({{size}}))
    for block in blocks:
        c.free(ctypes.c_void_p(block))

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")


def faults(keep: bool, size: int = BLOCK, **environment: str) -> tuple[str, int]:
    """What `keep_freed_memory` said, and the page faults of taking two blocks again and again."""
    rest = {name: value for name, value in os.environ.items() if name not in OWN_SETTINGS}
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(keep=keep, size=size)],
        env=rest | environment, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    return said[0], int(said[1])


@glibc
def test_freed_blocks_cost_no_page_faults() -> None:
    said, kept = faults(True)
    assert said == "True"
    assert kept < faults(False)[1] / 10


@glibc
def test_what_is_more_goes_back_to_the_system() -> None:
    assert faults(True, 5 * BLOCK)[1] > faults(False, 5 * BLOCK)[1] / 2


@glibc
def test_what_the_environment_says_wins() -> None:
    said, _ = faults(True, MALLOC_TRIM_THRESHOLD_="131072")
    assert said == "False"
