"""Image embeddings on disk, shared by processes and machines: half precision, checked, bounded in bytes.

    <folder>/<digest of the encoders>/<first two digits>/<key>.safetensors

A file appears whole or not at all, and carries the sha256 of its content. One that is damaged counts as
missing and is removed. When the folder outgrows its bound, what was used last stays.
"""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

FOLDER_DIGITS = 16
"""Hex digits of the encoders' digest that name their folder."""
KEPT_PART = 0.9
"""Of the bound: what is left after making room, so that it is not made for every file."""
COUNT_EVERY = 0.05
"""Of the bound: after writing so much, a process looks at what the others wrote."""
SUFFIX = ".safetensors"

logger = logging.getLogger(__name__)


class EmbeddingFiles:
    """The embeddings of one set of encoders. Making one touches no file; threads may share it.

    Args:
        folder: Shared with the embeddings of other encoders.
        encoders_digest: Hex digest of all that embeddings depend on beside the picture.
        max_bytes: Of all files in the folder together, other encoders' too; None does not bound them.
    """

    def __init__(self, folder: Path, encoders_digest: str, max_bytes: int | None = None) -> None:
        self.folder = folder
        self.encoders_digest = encoders_digest
        self._max_bytes = max_bytes
        self._known_bytes: int | None = None  # in the folder, when it was last looked at
        self._written_bytes = 0  # since then

    def find(self, key: str) -> dict[str, Tensor] | None:
        """The tensors that are kept under a key; None where nothing readable is."""
        path = self.path(key)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            self._drop(path, str(error))
            return None
        if metadata.get("sha256") != _digest_of_tensors(tensors) or metadata.get("key") != key:
            self._drop(path, "its content is not what was written")
            return None
        with suppress(OSError):  # removed meanwhile, or another user's
            os.utime(path)  # what was used longest ago goes first
        return tensors

    def keep(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Writes tensors under a key; on a full disk this is logged, and nothing is kept."""
        owned = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = save(owned, {"key": key, "sha256": _digest_of_tensors(owned)})
        path = self.path(key)
        aside = path.with_name(f".{path.stem}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                aside.write_bytes(data)
                os.replace(aside, path)
            finally:
                aside.unlink(missing_ok=True)
            self._make_room(len(data))
        except OSError as error:
            logger.warning("an image embedding was not kept in %s: %s", self.folder, error)

    def path(self, key: str) -> Path:
        """Where the file of a key is, or would be."""
        return self.folder / self.encoders_digest[:FOLDER_DIGITS] / key[:2] / f"{key}{SUFFIX}"

    def _drop(self, path: Path, reason: str) -> None:
        logger.warning("%s is damaged and is made anew: %s", path, reason)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("it cannot be removed: %s", error)

    def _make_room(self, written_bytes: int) -> None:
        if self._max_bytes is None:
            return
        self._written_bytes += written_bytes
        known = self._known_bytes
        if known is None or self._written_bytes > min(COUNT_EVERY * self._max_bytes, self._max_bytes - known):
            self._known_bytes, self._written_bytes = _bound(self.folder, self._max_bytes), 0


def digest_of_modules(*modules: nn.Module, also: str = "") -> str:
    """Hex sha256 of the modules' tensors and their names, and of what else matters."""
    digest = hashlib.sha256(also.encode())
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bound(folder: Path, max_bytes: int) -> int:
    """Removes what was used longest ago, if there is more than may be; returns the bytes that are left."""
    files = []
    for path in folder.rglob(f"*{SUFFIX}"):
        try:
            status = path.stat()
        except FileNotFoundError:  # another process makes room, too
            continue
        files.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in files)
    if total <= max_bytes:
        return total
    for _, size, path in sorted(files):
        path.unlink(missing_ok=True)
        total -= size
        if total <= KEPT_PART * max_bytes:
            break
    return total


def _digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    """Without a copy, where the tensor is on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
