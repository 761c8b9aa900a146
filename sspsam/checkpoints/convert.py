"""Converts published checkpoints to one safetensors file, the bundle, with a card next to it."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sspsam.checkpoints.load import (
    CheckpointError,
    differences,
    presets_matching,
    read_tensors,
    rename,
    write_tensors,
)
from sspsam.checkpoints.registry import Record, find_by_sha256, record_path
from sspsam.checkpoints.state_dicts import CLIP_PREFIX, IMAGE_ENCODER_PREFIX, Layout
from sspsam.files import replace_text, sha256_of_file
from sspsam.modeling.model import build_model
from sspsam.modeling.sam import build_image_encoder
from sspsam.presets import get_preset

LICENCES: Mapping[Layout, str] = {"clip": "MIT", "sam": "Apache-2.0", "ssp-sam": "Apache-2.0"}
"""Licences of the original weights in each layout."""
_PRECEDENCE: Sequence[Layout] = ("sam", "ours", "ssp-sam", "clip")
"""Later entries override earlier ones: a trained decoder replaces SAM's, and CLIP comes from its own file, as
in the authors' evaluation. SAM's frozen image encoder also comes from its own file, and may be a different
one.
"""
_FROZEN_PREFIXES = (CLIP_PREFIX, "sam.", IMAGE_ENCODER_PREFIX)


@dataclass(frozen=True)
class SourceCard:
    """A source file of a bundle."""

    file: str
    layout: Layout
    sha256: str
    size_bytes: int
    tensors: int
    """Number of the bundle's tensors from it."""
    licence: str
    published_as: str
    """Its name in `sspsam weights list`, found by sha256; empty if not listed."""
    url: str


@dataclass(frozen=True)
class BundleCard:
    """Content and origin of a bundle."""

    preset: str
    complete: bool
    """It can serve; otherwise it contains only what training leaves frozen."""
    sha256: str
    size_bytes: int
    tensors: int
    created_at: str
    """ISO 8601, UTC."""
    sources: tuple[SourceCard, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


@dataclass(frozen=True)
class _Source:
    path: Path
    layout: Layout
    tensors: dict[str, Tensor]


def convert(sources: Sequence[Path], preset: str, out: Path, for_training: bool = False) -> BundleCard:
    """Joins checkpoints into one file.

    Tensors keep their dtype (CLIP is published in float16) and are copied from file to file without being
    held in memory together.

    Args:
        sources: a checkpoint of the authors' training and, for missing parts, CLIP (OpenAI's archive or
            open_clip's) and SAM; at most one of each, in any order.
        preset: the variant that they belong to.
        out: the safetensors file; its card is written next to it, as `.json`.
        for_training: write only the starting point of training: CLIP and SAM, no prompt encoder.

    Raises:
        PresetError: unknown preset.
        CheckpointError: `out` is not named as safetensors; a file cannot be used; tensors are missing,
            unexpected or of another shape.
    """
    if out.suffix != ".safetensors":
        raise CheckpointError(f"expected a file named .safetensors to write, got {out}")
    expected = _expected(preset, for_training)
    opened = [_open(path) for path in sources]
    merged, owner = _merge(opened)
    if for_training:
        merged = {key: value for key, value in merged.items() if key.startswith(_FROZEN_PREFIXES)}
    if problems := differences(expected, merged):
        found = ", ".join(f"{source.path.name} ({source.layout})" for source in opened)
        problems = presets_matching(merged, lambda name: _expected(name, for_training)) + problems
        raise CheckpointError(f"{found} do not make up {preset}: " + "; ".join(problems))
    cards = tuple(_describe(source, sum(owner[key] is source for key in merged)) for source in opened)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(out, merged, {"preset": preset, "sources": json.dumps([asdict(c) for c in cards])})
    _sort_metadata(out)
    card = BundleCard(
        preset=preset,
        complete=not for_training,
        sha256=sha256_of_file(out),
        size_bytes=out.stat().st_size,
        tensors=len(merged),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        sources=cards,
    )
    replace_text(card_path(out), card.to_json())
    return card


def _sort_metadata(path: Path) -> None:
    """Sorts a file's metadata, which safetensors writes in random order.

    Equal sources then make bundles with equal sha256 on every machine: fine-tuned versions name theirs.
    """
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # padded with spaces, as the format allows
            file.seek(8)
            file.write(text.ljust(length))


def verify_bundle(bundle: Path) -> Literal["good", "damaged", "absent", "unknown"]:
    """Compares a bundle with the sha256 on its card; `unknown` without a card."""
    if not bundle.is_file():
        return "absent"
    try:
        expected = json.loads(card_path(bundle).read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"
    return "good" if sha256_of_file(bundle) == expected else "damaged"


def card_path(bundle: Path) -> Path:
    """Path of a bundle's card."""
    return bundle.with_suffix(".json")


@cache
def _expected(preset: str, for_training: bool) -> Mapping[str, Tensor]:
    """Every tensor of a bundle, without its values."""
    with torch.device("meta"):
        model = build_model(preset)
        image_encoder = build_image_encoder(get_preset(preset).image_encoder)
    expected = model.state_dict()
    expected |= {IMAGE_ENCODER_PREFIX + key: value for key, value in image_encoder.state_dict().items()}
    if for_training:
        return {key: value for key, value in expected.items() if key.startswith(_FROZEN_PREFIXES)}
    return dict(expected)


def _open(path: Path) -> _Source:
    state = read_tensors(path)
    try:
        layout, tensors = rename(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return _Source(path, layout, tensors)


def _merge(sources: Sequence[_Source]) -> tuple[dict[str, Tensor], dict[str, _Source]]:
    """All tensors, with the file that each is from."""
    merged: dict[str, Tensor] = {}
    owner: dict[str, _Source] = {}
    for layout in _PRECEDENCE:
        same = [source for source in sources if source.layout == layout]
        if len(same) > 1:
            names = ", ".join(str(source.path) for source in same)
            raise CheckpointError(f"expected one file per layout, got several of {layout}: {names}")
        for source in same:
            has_own = layout == "sam" or not any(other.layout == "sam" for other in sources)
            tensors = source.tensors if has_own else _without_image_encoder(source.tensors)
            merged |= tensors
            owner |= dict.fromkeys(tensors, source)
    return merged, owner


def _without_image_encoder(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if not key.startswith(IMAGE_ENCODER_PREFIX)}


def _describe(source: _Source, tensors: int) -> SourceCard:
    sha256 = sha256_of_file(source.path)
    published = find_by_sha256(sha256) or Record.read(record_path(source.path))
    if published is not None and published.sha256 != sha256:
        published = None  # the file changed after its download
    return SourceCard(
        file=source.path.name,
        layout=source.layout,
        sha256=sha256,
        size_bytes=source.path.stat().st_size,
        tensors=tensors,
        licence=published.licence
        if published
        else f"unknown file; published ones of this kind: {_usual(source)}",
        published_as=published.name if published else "",
        url=published.url if published else "",
    )


def _usual(source: _Source) -> str:
    return LICENCES.get(source.layout, "according to its card")
