"""Makes the reference checkpoint and inputs of the golden run: every tensor follows from its name."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN_FOLDER = Path(__file__).parent.parent / "golden"


def golden_record(variant: str) -> dict[str, Any]:
    """The recorded inputs and outputs of a variant."""
    record: dict[str, Any] = json.loads((GOLDEN_FOLDER / f"{variant}.json").read_text())
    return record


def golden_shapes(variant: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a reference checkpoint."""
    rows = (GOLDEN_FOLDER / f"keys-{variant}.tsv").read_text().splitlines()
    pairs = (row.split("\t") for row in rows if not row.startswith("#"))
    return {key: () if shape == "scalar" else tuple(map(int, shape.split("x"))) for key, shape in pairs}


def golden_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of that name."""
    fixed = {"tf_scale": 1.0, "tf_sigma": 0.5, "encoder.logit_scale": math.log(1 / 0.07)}
    if key in fixed:
        return torch.full(shape, fixed[key])
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    noise = generator.standard_normal(shape, dtype=np.float32)
    if key.endswith("running_var"):
        return torch.from_numpy(1 + 0.1 * noise**2)
    if not key.endswith("positional_encoding_gaussian_matrix"):
        if len(shape) == 1:
            noise = 1 + 0.1 * noise if key.endswith("weight") else 0.02 * noise
        else:
            noise = noise / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(np.asarray(noise, np.float32))


def golden_checkpoint(variant: str) -> dict[str, Tensor]:
    """A reference checkpoint without SAM's image encoder."""
    shapes = golden_shapes(variant)
    return {key: golden_tensor(key, shape) for key, shape in shapes.items() if _takes_part(key)}


def golden_inputs(record: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """CLIP canvases, SAM image embeddings and tokens."""
    generator = np.random.Generator(np.random.PCG64(record["seed"]))
    clip_images, image_embeddings = (
        torch.from_numpy(generator.standard_normal(record[key], dtype=np.float32))
        for key in ("clip_image_shape", "image_embedding_shape")
    )
    tokens = torch.zeros(len(record["tokens"]), 77, dtype=torch.long)
    for row, ids in zip(tokens, record["tokens"], strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return clip_images, image_embeddings, tokens


def _takes_part(key: str) -> bool:
    return not key.startswith(("sam.image_encoder.", "img2img_attn.pos_"))
