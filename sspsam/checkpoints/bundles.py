"""Bundles: files with a whole variant, model and image encoder, packaged or the operator's."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from sspsam.checkpoints.load import CheckpointError, load_strictly, read_metadata, read_tensors
from sspsam.checkpoints.state_dicts import IMAGE_ENCODER_PREFIX
from sspsam.files import sha256_of_file
from sspsam.modeling.model import SSPSAM, build_model
from sspsam.modeling.sam import build_image_encoder
from sspsam.presets import get_preset

WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights"


def packaged_weights(preset: str) -> Path | None:
    """The packaged weights of a preset, if any."""
    name = get_preset(preset).weights
    return None if name is None else WEIGHTS_FOLDER / name


def frozen_weights(preset: str, weights: Path | None = None) -> dict[str, str]:
    """The weights that fine-tunes of the preset leave frozen: file name -> sha256.

    Args:
        preset: Name of the preset.
        weights: The operator's weights; None for the packaged ones. Without either, the result is empty.
    """
    path = weights or packaged_weights(preset)
    return {} if path is None else {path.name: sha256_of_file(path)}


def load_bundle(preset: str, path: Path) -> tuple[SSPSAM, nn.Module]:
    """Builds the model and its image encoder from a bundle.

    Tensors are memory-mapped: float32 weights exist once, and are read on use. The file must not be modified
    in place meanwhile; replacing it is safe.

    Args:
        preset: key of PRESETS.
        path: safetensors, the image encoder's tensors under `image_encoder.`.

    Raises:
        CheckpointError: it is missing, damaged, made for another preset, or does not fit.
    """
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} is not a safetensors file: create one with sspsam weights convert")
    state = read_tensors(path)
    made_for = read_metadata(path).get("preset", preset)
    if made_for != preset:
        raise CheckpointError(f"{path} was made for {made_for}, expected {preset}")
    encoder = {
        key.removeprefix(IMAGE_ENCODER_PREFIX): value
        for key, value in state.items()
        if key.startswith(IMAGE_ENCODER_PREFIX)
    }
    rest = {key: value for key, value in state.items() if not key.startswith(IMAGE_ENCODER_PREFIX)}
    with torch.device("meta"):
        model = build_model(preset)
        image_encoder = build_image_encoder(model.preset.image_encoder)
    load_strictly(image_encoder, encoder, assign=True)
    load_strictly(model, rest, assign=True)
    model.clip.restore_attention_mask()
    return model, image_encoder
