"""Weights of the tiny preset whose answers differ in certainty; the preset's own are uncertain throughout."""

from __future__ import annotations

import torch

from sspsam import Predictor

PRESET = "ssp-sam-test"


def decisive_state() -> dict[str, torch.Tensor]:
    """Trainable tensors with a larger predicted IoU and larger mask logits."""
    state = Predictor.from_preset(PRESET, "cpu").trainable_state()
    decoder = "sam.mask_decoder."
    state[f"{decoder}iou_prediction_head.layers.2.bias"] += 0.6
    for part in ("weight", "bias"):
        state[f"{decoder}output_hypernetworks_mlps.0.layers.2.{part}"] *= 100
    return state
