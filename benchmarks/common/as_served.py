"""Importing this, before torch, makes the process what `sspsam serve` makes its own."""

from __future__ import annotations

from backend.serve import tune_process

tune_process()

from sspsam.products import use_onednn_matmul  # noqa: E402 - imports torch

use_onednn_matmul()
