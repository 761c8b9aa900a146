"""Applies the process settings of `sspsam serve`. Import it before torch."""

from __future__ import annotations

from backend.web.serve import tune_process

tune_process()

from sspsam.runtime.product_speeds import use_faster_products  # noqa: E402 - imports torch

use_faster_products()
