"""Simulated clicks on errors of the model's first answer."""

from __future__ import annotations

import torch
from torch import Tensor


def correcting_clicks(mask_logits: Tensor, masks: Tensor, count: int, side: int) -> tuple[Tensor, Tensor]:
    """Samples points uniformly from the error region, or from anywhere if there is no error.

    Args:
        mask_logits: (B, 1, T, T), the answers.
        masks: (B, 1, T, T) in 0..1, the ground truth.
        count: Points per sample.
        side: Side of SAM's input, px.

    Returns:
        xy (B, count, 2) float32, px of SAM's input, and labels (B, count): 1 on the target, 0 elsewhere.

    Source: *Segment Anything* (arXiv 2304.02643), sec. A: the next point comes from the error region.
    """
    truth = masks.flatten(1) > 0.5
    wrong = (mask_logits.flatten(1) > 0) != truth
    chosen = torch.multinomial(wrong.float() + torch.finfo(torch.float32).eps, count)  # (B, count)
    size = masks.shape[-1]
    xy = torch.stack([chosen % size, chosen // size], dim=-1)
    return (xy + 0.5) * (side / size), truth.gather(1, chosen).long()
