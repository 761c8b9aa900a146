"""Checkpoint files: reading without executing code, strict loading, and the set of trainable tensors.

Errors:
    CheckpointError: the file cannot be read, is not a checkpoint, or its tensors do not fit the model.
"""

from __future__ import annotations

import argparse
import mmap
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sspsam.checkpoints.state_dicts import IMAGE_ENCODER_PREFIX, Layout, find_layout, to_ours
from sspsam.checkpoints.torchscript import is_torchscript, read_torchscript
from sspsam.files import replacing
from sspsam.modeling.learned_tokens import WORDS_PREFIX
from sspsam.modeling.model import SSPSAM
from sspsam.phrases import token_text
from sspsam.presets import PRESETS, Preset


class CheckpointError(ValueError):
    """An unusable checkpoint; the message gives the reason."""


PARTS: Mapping[Layout, str] = {"clip": "clip.", "sam": "sam."}
"""Layouts that contain a part of the model -> the prefix of that part."""

_SHOWN_NAMES = 50
_SHOWN_CHARACTERS = 200
_DISTRIBUTED_PREFIX = "module."
"""Prefix of all names in a checkpoint of a model wrapped by DistributedDataParallel."""


def load_checkpoint(model: SSPSAM, source: str | Path | Mapping[str, object]) -> None:
    """Loads a checkpoint into the model, strictly.

    Args:
        model: as from build_model.
        source: a path or a dict of tensors, with or without a wrapper (`model`, `state_dict`), of
            - our layout or the authors': everything but SAM's image encoder, which is not part of the model.
              If CLIP is missing, the model's own is kept;
            - OpenAI's CLIP (its TorchScript archive or a state dict) or open_clip's: CLIP only;
            - segment_anything: SAM's prompt encoder and mask decoder only.

    Raises:
        CheckpointError: unreadable, or tensors are missing, unexpected or of another shape; all are listed.
    """
    state = read_tensors(source) if isinstance(source, str | Path) else _unwrap(source)
    layout, state = rename(state)
    part = PARTS.get(layout, "")
    state = {key: value for key, value in state.items() if not key.startswith(IMAGE_ENCODER_PREFIX)}
    _copy(model, state, part=part, optional_prefix="" if part else "clip.")


def load_image_encoder(encoder: nn.Module, source: str | Path | Mapping[str, object]) -> None:
    """Loads SAM's image encoder, strictly.

    Args:
        encoder: as from build_image_encoder.
        source: a path or a dict of tensors, with or without a wrapper (`model`, `state_dict`), as published
            for SAM (`sam_vit_b_01ec64.pth`) or MobileSAM (`mobile_sam.pt`): the other parts are ignored. The
            tensors of an image encoder alone, a checkpoint of the authors' training and our bundles also fit.

    Raises:
        CheckpointError: unreadable, or tensors are missing, unexpected or of another shape; all are listed.
    """
    state = read_tensors(source) if isinstance(source, str | Path) else _unwrap(source)
    if not encoder.state_dict().keys().isdisjoint(state):  # the encoder alone, without SAM's prefix
        state = {IMAGE_ENCODER_PREFIX + name: value for name, value in state.items()}
    _, state = rename(state)
    own = {
        name.removeprefix(IMAGE_ENCODER_PREFIX): value
        for name, value in state.items()
        if name.startswith(IMAGE_ENCODER_PREFIX)
    }
    if not own:
        raise CheckpointError("the checkpoint has no image encoder: no name begins with `image_encoder.`")
    _copy(encoder, own)


def rename(state: Mapping[str, Tensor]) -> tuple[Layout, dict[str, Tensor]]:
    """The layout, and the tensors under our names.

    Raises:
        CheckpointError: unknown layout.
    """
    try:
        layout = find_layout(state.keys())
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    return layout, to_ours(state, layout)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], assign: bool = False) -> None:
    """Loads tensors into a module: all of its tensors and no others.

    Args:
        module: any module.
        state: tensors by name.
        assign: replace the module's tensors, types included, instead of copying into them; for modules on the
            meta device.

    Raises:
        CheckpointError: names or shapes do not fit; they are listed.
    """
    _copy(module, state, assign=assign)


def _copy(
    module: nn.Module,
    state: Mapping[str, Tensor],
    part: str = "",
    optional_prefix: str = "",
    assign: bool = False,
) -> None:
    """Requires the tensors under `part`; those under `optional_prefix` may be missing all together."""

    def wanted(module: nn.Module) -> dict[str, Tensor]:
        wanted = {key: value for key, value in module.state_dict().items() if key.startswith(part)}
        if optional_prefix and not any(key.startswith(optional_prefix) for key in state):
            wanted = {key: value for key, value in wanted.items() if not key.startswith(optional_prefix)}
        return wanted

    expected = wanted(module)
    if problems := differences(expected, state) + not_finite(state):
        if isinstance(module, SSPSAM):
            problems = presets_matching(state, lambda name: wanted(_without_values(PRESETS[name]))) + problems
        raise CheckpointError("the checkpoint does not fit the model: " + "; ".join(problems))
    if assign:
        state = {key: value.to(expected[key].dtype) for key, value in state.items()}
    module.load_state_dict(dict(state), strict=False, assign=assign)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Reads a checkpoint file into tensors on the CPU, without ever running code from it.

    Tensors are memory-mapped if the format allows it (all but pickles from before torch 1.6). The file must
    not be modified meanwhile; replacing it is safe.

    Raises:
        CheckpointError: missing, damaged, or a pickle that contains more than tensors and plain values.
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
        _check_sizes(path)
        tensors = read_torchscript(path) if is_torchscript(path) else _unwrap(_read_pickle(path))
        return _backed(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} contains more than tensors and was not loaded: {_surplus(path, error)}"
        ) from error
    except _DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint, and was not loaded: {reason}"
        ) from error


_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OSError,
    MemoryError,
)
MAX_UNPACKED_BYTES = 64 * 2**20
"""Limit of compressed entries and of the pickle (names and shapes). Tensors are stored uncompressed."""


def _read_pickle(path: Path) -> object:
    """Content of a torch.save file: tensors, plain values, and the authors' command line arguments."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        mapped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _check_sizes(path: Path) -> None:
    """Checks for content that would need far more memory than the file size.

    Raises:
        CheckpointError: such content was found.
    """
    if not zipfile.is_zipfile(path):
        pickled: bytes | mmap.mmap = b""
        with path.open("rb") as file:
            if path.stat().st_size:
                pickled = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    else:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
            pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            unpacked = sum(entry.file_size for entry in {*packed, *pickles})
            if unpacked > MAX_UNPACKED_BYTES:
                raise CheckpointError(f"it unpacks to {unpacked} bytes, more than any checkpoint needs")
            if sum(entry.compress_size for entry in entries) > path.stat().st_size:
                raise CheckpointError("its archive has overlapping entries")
            pickled = b"".join(archive.read(entry) for entry in pickles)
    if pickled.find(b"bytearray\n") >= 0:  # torch allocates one of any length requested by a pickle
        raise CheckpointError("it contains more than tensors and was not loaded: it needs bytearray")


def _backed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each fully backed by data in the file: a view can repeat one number arbitrarily often."""
    for key, value in tensors.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise CheckpointError(f"{key} is not an ordinary tensor")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(f"{key} has shape {tuple(value.shape)}, but fewer numbers")
    return tensors


def _surplus(path: Path, error: pickle.UnpicklingError) -> str:
    """The code that a refused pickle requires."""
    if not zipfile.is_zipfile(path) or is_torchscript(path):
        return str(error).splitlines()[0]
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (pickle.UnpicklingError, *_DAMAGED):
        return str(error).splitlines()[0]
    needed = ", ".join(sorted(name for name in names if name != "argparse.Namespace"))
    return (
        f"it needs {needed or 'code'}, and code from a checkpoint is never run. Load it where it was "
        "created, and save only its state_dict()"
    )


def read_metadata(path: Path) -> dict[str, str]:
    """The text values in a safetensors file's header.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file atomically.

    Raises:
        OSError: the disk is full, or does not accept it otherwise.
    """
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with replacing(path) as staged:
        staged.touch()
        mode = staged.stat().st_mode  # safetensors would create a file readable by its owner only
        try:
            save_file(contiguous, staged, dict(metadata or {}))
        except SafetensorError as error:
            raise OSError(f"the disk does not accept {path}: {error}") from error
        staged.chmod(mode)


def trainable_state(model: SSPSAM) -> dict[str, Tensor]:
    """The tensors changed by training: everything but CLIP and SAM's prompt encoder, and learned words."""
    words = model.learned_words.state_dict(prefix=WORDS_PREFIX)
    return {name: p.detach() for name, p in model.named_parameters() if is_trainable(name)} | words


def is_trainable(name: str) -> bool:
    """Whether fine-tuning changes the tensor of that name."""
    return not name.startswith(("clip.", "sam.prompt_encoder."))


def load_trainable(model: SSPSAM, state: Mapping[str, Tensor]) -> None:
    """Copies fine-tuned tensors into the model; requires exactly the trainable ones. Learned words come from
    the state alone.

    Raises:
        CheckpointError: names or shapes do not fit, or a value is not finite.
    """
    words, others = checked_trainable(model, state)
    _, own = _split_words(trainable_state(model))
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(others[name])
    model.learned_words.replace(words, model.fusion.weight.device)


def checked_trainable(
    model: SSPSAM, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Learned words, without their prefix, and all other trainable tensors of a state for this model.

    Raises:
        CheckpointError: as `load_trainable`.
    """
    words, others = _split_words(state)
    _, own = _split_words(trainable_state(model))
    problems = differences(own, others) + not_finite(state) + model.learned_words.problems(words)
    if problems:
        raise CheckpointError("the weights do not fit the model: " + "; ".join(problems))
    return words, others


def learned_words(state: Mapping[str, Tensor]) -> list[str]:
    """The words, or word pieces, that fine-tuned tensors have taught the text tower."""
    tokens = state.get(f"{WORDS_PREFIX}tokens")
    return [] if tokens is None else [token_text(token) for token in tokens.tolist()]


def _split_words(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Learned words, without their prefix, and all other tensors."""
    words = {k.removeprefix(WORDS_PREFIX): v for k, v in state.items() if k.startswith(WORDS_PREFIX)}
    return words, {name: value for name, value in state.items() if not name.startswith(WORDS_PREFIX)}


def _unwrap(checkpoint: object) -> dict[str, Tensor]:
    for wrapper in ("model", "state_dict"):
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(wrapper), Mapping):
            checkpoint = checkpoint[wrapper]
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"expected a dict of tensors, got {type(checkpoint).__name__}")
    tensors = {str(key): value for key, value in checkpoint.items() if isinstance(value, Tensor)}
    if len(tensors) != len(checkpoint):
        others = sorted(str(key) for key in checkpoint if str(key) not in tensors)
        raise CheckpointError(f"expected only tensors, found other values under: {', '.join(others[:10])}")
    if tensors and all(key.startswith(_DISTRIBUTED_PREFIX) for key in tensors):
        tensors = {key.removeprefix(_DISTRIBUTED_PREFIX): value for key, value in tensors.items()}
    return tensors


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Description of missing and unexpected tensors and of differing shapes."""
    problems = []
    if missing := sorted(expected.keys() - found.keys()):
        problems.append(f"missing: {_listed(missing)}")
    if unexpected := sorted(found.keys() - expected.keys()):
        problems.append(f"unexpected: {_listed(unexpected)}")
    shared = sorted(expected.keys() & found.keys())
    if reshaped := [key for key in shared if expected[key].shape != found[key].shape]:
        shapes = [f"{key} {tuple(found[key].shape)} for {tuple(expected[key].shape)}" for key in reshaped]
        problems.append(f"of another shape: {_listed(shapes)}")
    if retyped := [key for key in shared if _kind(expected[key]) != _kind(found[key])]:
        types = [f"{key} {found[key].dtype} for {expected[key].dtype}" for key in retyped]
        problems.append(f"of another type: {_listed(types)}")
    return problems


def presets_matching(
    found: Mapping[str, Tensor], expected: Callable[[str], Mapping[str, Tensor]]
) -> list[str]:
    """Names of the presets that these tensors belong to.

    Args:
        found: tensors under our names.
        expected: returns those of a preset.
    """
    return [f"it is one of {name}" for name in PRESETS if not differences(expected(name), found)]


@cache
def _without_values(preset: Preset) -> SSPSAM:
    """The model without the memory of its tensors; making those of all presets takes half a second."""
    with torch.device("meta"):
        return SSPSAM(preset)


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Description of tensors that contain NaN or infinity."""
    wrong = [key for key, value in tensors.items() if value.is_floating_point() and not _is_finite(value)]
    return [f"not finite: {_listed(wrong)}"] if wrong else []


def _is_finite(value: Tensor) -> bool:
    """Checks piece by piece: a mask of a whole tensor would take a quarter of its size."""
    if value.is_meta:
        return True
    return all(bool(piece.isfinite().all()) for piece in torch.split(value.reshape(-1), 1 << 20))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:_SHOWN_CHARACTERS] for name in names[:_SHOWN_NAMES])
    return shown if len(names) <= _SHOWN_NAMES else f"{shown} and {len(names) - _SHOWN_NAMES} more"
