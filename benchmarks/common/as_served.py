"""Importing this, before torch, makes the process what `sspsam serve` makes its own."""

from __future__ import annotations

from backend.serve import KEPT_BYTES
from sspsam.allocation import keep_freed_memory
from sspsam.openmp import watch_briefly

keep_freed_memory(KEPT_BYTES)
watch_briefly()
