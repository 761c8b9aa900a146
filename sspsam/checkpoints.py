"""Checkpoint files: ours (safetensors) and the reference implementation's layout.

Errors:
    CheckpointError: the file cannot be read, is not a checkpoint, or its tensors do not fit the model.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sspsam.model import SSPSAM


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says why."""


REFERENCE_PREFIXES = {
    "encoder.": "clip.towers.",
    "clip_proj.": "linguistic_adapter.word_projection.",
    "text_proj.": "linguistic_adapter.gru.",
    "phrase_attn.fc.": "linguistic_adapter.attention_score.",
    "clip_img_proj.": "visual_adapter.patch_projection.",
    "img2text_attn.": "visual_adapter.words_attention.",
    "img_proj.layers.0.": "visual_adapter.patch_verification.",
    "imgtext_proj.layers.0.": "visual_adapter.words_verification.",
    "tf_scale": "visual_adapter.verification_scale",
    "tf_sigma": "visual_adapter.verification_sigma",
    "norm_img.": "visual_adapter.patch_norm.",
    "mlp.": "fusion.",
    "reg_token.": "prompt_generator.box_token.",
    "prompt_token.": "prompt_generator.prompt_tokens.",
    "vl_pos_embed.": "prompt_generator.position.",
    "vl_transformer.encoder.layers.": "prompt_generator.layers.",
    "norm.": "prompt_generator.norm.",
    "bbox_embed.": "box_head.",
    "sam.prompt_encoder.": "sam.prompt_encoder.",
    "sam.mask_decoder.": "sam.mask_decoder.",
}
"""Reference layout to ours, longest prefix first where two could match (none do)."""

UNUSED_REFERENCE_PREFIXES = (
    "img2img_attn.",  # two modules that released checkpoints carry and the forward pass never uses
    "norm_text_cond_img.",
    "sam.image_encoder.",  # stock; lives outside the model
    "sam.pixel_",
    "encoder.visual.attn.",  # a copy that the reference's lazy surgery leaves behind
)

SURGERY_RENAMES = {
    ".attn.qkv.weight": ".attn.in_proj_weight",
    ".attn.qkv.bias": ".attn.in_proj_bias",
    ".attn.proj.weight": ".attn.out_proj.weight",
    ".attn.proj.bias": ".attn.out_proj.bias",
}
"""How the reference's surgery renames the attention of the last image blocks."""


def load_checkpoint(model: SSPSAM, source: str | Path | Mapping[str, object]) -> None:
    """Loads a checkpoint into the model, strictly.

    Args:
        model: as from build_model.
        source: a path (ours: `.safetensors`; the authors': a pickle) or a dict of tensors in the authors'
            layout, with or without the `model` wrapper. CLIP may be missing: then the model's own stays.

    Raises:
        CheckpointError: unreadable, or tensors are missing, unexpected or of another shape; all are listed.
    """
    state = read_tensors(source) if isinstance(source, str | Path) else _unwrap(source)
    if is_reference_layout(state):
        state = reference_to_ours(state)
    state = {key: value for key, value in state.items() if not key.startswith("image_encoder.")}
    load_strictly(model, state, optional_prefix="clip.")


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], optional_prefix: str | None = None) -> None:
    """Copies tensors into a module; all of its tensors, and no others.

    Args:
        module: any module.
        state: tensors by name.
        optional_prefix: tensors under this prefix may be missing, if all of them are.

    Raises:
        CheckpointError: names or shapes do not fit; they are listed.
    """
    expected = module.state_dict()
    if optional_prefix and not any(key.startswith(optional_prefix) for key in state):
        expected = {key: value for key, value in expected.items() if not key.startswith(optional_prefix)}
    problems = _differences(expected, state)
    if problems:
        raise CheckpointError("the checkpoint does not fit the model: " + "; ".join(problems))
    module.load_state_dict(dict(state), strict=False)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Reads a checkpoint file into tensors on the CPU, without ever running code from it.

    Raises:
        CheckpointError: missing, damaged, or a pickle that holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return _unwrap(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} holds more than tensors, or is damaged, and was not loaded: {reason}"
        ) from error


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file: aside first, then moved into place."""
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    aside = path.with_name(path.name + ".part")
    save_file(contiguous, aside, dict(metadata or {}))
    aside.replace(path)


def trainable_state(model: SSPSAM) -> dict[str, Tensor]:
    """The tensors that training changes: everything but CLIP and SAM's prompt encoder."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if is_trainable(name)}


def is_trainable(name: str) -> bool:
    """Whether fine-tuning changes the tensor of that name."""
    return not name.startswith(("clip.", "sam.prompt_encoder."))


def load_trainable(model: SSPSAM, state: Mapping[str, Tensor]) -> None:
    """Copies fine-tuned tensors into the model; exactly the trainable ones.

    Raises:
        CheckpointError: names or shapes do not fit, or a value is not finite.
    """
    own = trainable_state(model)
    problems = _differences(own, state)
    problems += [f"not finite: {key}" for key, value in state.items() if not value.isfinite().all()]
    if problems:
        raise CheckpointError("the weights do not fit the model: " + "; ".join(problems))
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])


def is_reference_layout(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of the reference implementation."""
    return "tf_scale" in state


def reference_to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames a reference checkpoint's tensors; unknown names are kept, for the strict loader to report."""
    ours = {}
    for key, value in state.items():
        if key.startswith(UNUSED_REFERENCE_PREFIXES):
            continue
        ours[_rename(key)] = value
    return ours


def sha256_of_file(path: Path) -> str:
    """The file's sha256, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rename(key: str) -> str:
    for prefix, replacement in REFERENCE_PREFIXES.items():
        if key.startswith(prefix):
            key = replacement + key.removeprefix(prefix)
            break
    if key.startswith("clip.towers.visual."):
        for old, new in SURGERY_RENAMES.items():
            key = key.replace(old, new)
    return key


def _unwrap(checkpoint: object) -> dict[str, Tensor]:
    if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get("model"), Mapping):
        checkpoint = checkpoint["model"]
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"expected a dict of tensors, got {type(checkpoint).__name__}")
    tensors = {str(key): value for key, value in checkpoint.items() if isinstance(value, Tensor)}
    if len(tensors) != len(checkpoint):
        others = sorted(str(key) for key in checkpoint if str(key) not in tensors)
        raise CheckpointError(f"expected only tensors, found other values under: {', '.join(others[:10])}")
    return tensors


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    problems = []
    if missing := sorted(expected.keys() - found.keys()):
        problems.append(f"missing: {', '.join(missing)}")
    if unexpected := sorted(found.keys() - expected.keys()):
        problems.append(f"unexpected: {', '.join(unexpected)}")
    for key in sorted(expected.keys() & found.keys()):
        if expected[key].shape != found[key].shape:
            problems.append(
                f"{key} has shape {tuple(found[key].shape)}, expected {tuple(expected[key].shape)}"
            )
    return problems
