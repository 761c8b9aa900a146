"""Models by name: which published files each is made of, and the bundles that are ready on this machine.

A bundle is converted once and kept in the folder of weights, as `converted/<preset>-<digest>.safetensors`,
with its card. The card is written last: without one there is no bundle. Nothing here imports torch or uses
the network.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sspsam.checkpoints.registry import PublicFile, Record, find_public_file, record_path
from sspsam.files import replace_text, sha256_of_file

PACKAGED = "stickers"
"""The model in the package."""
PHOTOGRAPHS = "photographs"
"""The model for photographs that suits this machine."""
SUBFOLDER = "converted"
"""Of the folder of weights."""
MIB, GIB = 2**20, 2**30


class ModelError(ValueError):
    """An unknown model, or weights that cannot be used; the message says what to do."""


@dataclass(frozen=True)
class PublishedModel:
    """A model that is made of published files."""

    preset: str
    files: tuple[str, ...]
    """Names in the table of public files: SSP-SAM's checkpoint, CLIP, and SAM with its image encoder."""
    bundle_bytes: int
    """Size of the converted file."""
    memory_bytes: int
    """Memory of a backend that serves it, in float32 on a CPU."""


@dataclass(frozen=True)
class ReadyModel:
    """A model that can be loaded without the network."""

    preset: str
    weights: Path | None
    """None for packaged weights."""

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables that select it; empty ones stand for the default."""
        return {"PRESET": self.preset, "SAM_ENCODER": "", "WEIGHTS": str(self.weights or "")}


_SMALL = ("ssp-sam-224-grefcoco", "clip-vit-b-16")
_LARGE = ("ssp-sam-336-grefcoco", "clip-vit-l-14-336")
MODELS: Mapping[str, PublishedModel] = {
    model.preset: model
    for model in (
        PublishedModel("ssp-sam-224", (*_SMALL, "sam-vit-h"), 2_920 * 10**6, 6 * GIB),
        PublishedModel("ssp-sam-224-with-mobile", (*_SMALL, "mobile-sam"), 395 * 10**6, 3 * GIB),
        PublishedModel("ssp-sam-336", (*_LARGE, "sam-vit-h"), 3_478 * 10**6, 7 * GIB),
        PublishedModel("ssp-sam-336-with-mobile", (*_LARGE, "mobile-sam"), 953 * 10**6, 4 * GIB),
    )
}
WITH_GPU, WITHOUT_GPU = "ssp-sam-224", "ssp-sam-224-with-mobile"
"""Models for photographs."""
GPU_MIN_BYTES = 8 * GIB
"""Total memory of a GPU for SAM's ViT-H beside a fine-tune; an estimate, since none was measured."""
NAMES = (PACKAGED, PHOTOGRAPHS, *MODELS)


def find_model(name: str) -> PublishedModel:
    """A model of the table.

    Raises:
        ModelError: unknown name.
    """
    if name in MODELS:
        return MODELS[name]
    raise ModelError(
        f"unknown model {name!r}, expected one of: {', '.join(NAMES)}, or a .safetensors file that was "
        "written by `sspsam weights bundle`"
    )


def find_ready(model: PublishedModel, folder: Path) -> ReadyModel | None:
    """The converted bundle of a model, if it is there and undamaged. The newest one counts.

    Args:
        model: of the table.
        folder: of the downloaded weights.
    """
    cards = [(path, _read_json(path)) for path in (folder / SUBFOLDER).glob(f"{model.preset}-*.json")]
    fitting = [(path, card) for path, card in cards if _is_made_of(card, model, folder)]
    for path, card in sorted(fitting, key=lambda entry: str(entry[1].get("created_at")), reverse=True):
        bundle = path.with_suffix(".safetensors")
        if is_intact(bundle, path, card):
            return ReadyModel(model.preset, bundle)
    return None


def is_intact(bundle: Path, card_path: Path, card: Mapping[str, Any]) -> bool:
    """Whether a bundle has the content that its card states.

    A bundle that is older than its card was compared with it; the sha256 of any other is computed, and the
    card's time renewed if it is right.
    """
    try:
        status = bundle.stat()
        if status.st_size != card.get("size_bytes"):
            return False
        if status.st_mtime_ns <= card_path.stat().st_mtime_ns:
            return True
        if sha256_of_file(bundle) != card.get("sha256"):
            return False
    except OSError:
        return False
    if os.access(card_path, os.W_OK):
        os.utime(card_path)
    return True


def of_file(path: Path) -> ReadyModel:
    """The model in a bundle, which may come from another machine.

    Raises:
        ModelError: it is no bundle, or damaged.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        raise ModelError(f"no file {path}: expected one that was written by `sspsam weights bundle`")
    try:
        with safe_open(path, framework="numpy") as file:
            preset = (file.metadata() or {}).get("preset")
    except SafetensorError as error:
        raise ModelError(
            f"{path} is damaged or incomplete ({error}): copy it again, and compare its sha256"
        ) from error
    if not preset:
        raise ModelError(f"{path} names no preset: write it with `sspsam weights bundle` or `convert`")
    card_path = path.with_suffix(".json")
    card = _read_json(card_path)
    if "sha256" in card and not is_intact(path, card_path, card):
        raise ModelError(f"{path} is not the file that its card {card_path.name} describes: copy both again")
    if card.get("complete") is False:
        raise ModelError(f"{path} is a starting point for training, and cannot serve")
    return ReadyModel(preset, path.resolve())


def note_choice(preset: str, folder: Path) -> None:
    """Records the model that was chosen for photographs, for processes that must use the same."""
    (folder / SUBFOLDER).mkdir(parents=True, exist_ok=True)
    replace_text(_choice_path(folder), json.dumps({"preset": preset}))


def noted_choice(folder: Path) -> PublishedModel | None:
    """The model that was chosen for photographs; None if there was no choice yet."""
    return MODELS.get(str(_read_json(_choice_path(folder)).get("preset")))


def ready_without_choosing(name: str, folder: Path) -> ReadyModel | None:
    """A model by name, if it is ready; for photographs, the one that was chosen.

    Raises:
        ModelError: unknown name, or the named file cannot be used.
    """
    if name == PACKAGED:
        return ReadyModel("ssp-sam-demo", None)
    if is_file_name(name):
        return of_file(Path(name))
    model = noted_choice(folder) if name == PHOTOGRAPHS else find_model(name)
    return find_ready(model, folder) if model else None


def is_file_name(name: str) -> bool:
    """Whether a model is named by its file."""
    return name.endswith(".safetensors") or os.sep in name


def _is_made_of(card: Mapping[str, Any], model: PublishedModel, folder: Path) -> bool:
    """Whether a bundle is complete and consists of the published files that the table lists now."""
    sources = card.get("sources")
    if (
        card.get("preset") != model.preset
        or card.get("complete") is not True
        or not isinstance(sources, list)
    ):
        return False
    found = {
        source.get("published_as"): source.get("sha256") for source in sources if isinstance(source, dict)
    }
    files = [find_public_file(name) for name in model.files]
    return all(file.name in found and _sha256(file, folder) in (None, found[file.name]) for file in files)


def _sha256(file: PublicFile, folder: Path) -> str | None:
    """The published sha256, or that of the downloaded file; None if it is unknown and not downloaded."""
    path = folder / file.file_name
    record = Record.read(record_path(path)) if file.sha256 is None and path.is_file() else None
    return record.sha256 if record else file.sha256


def _choice_path(folder: Path) -> Path:
    return folder / SUBFOLDER / f"{PHOTOGRAPHS}.json"


def _read_json(path: Path) -> dict[str, Any]:
    """A card; empty without a readable one."""
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return card if isinstance(card, dict) else {}
