"""Disk cache of image embeddings, shared by processes and machines: half precision, checksummed, bounded.

    <folder>/<digest of the encoders>/<first two digits>/<key>.safetensors

Files are written atomically and contain the sha256 of their content. A corrupt file counts as missing and is
removed. Eviction is LRU.
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
"""Number of hex digits of the encoders' digest in the folder's name."""
KEPT_PART = 0.9
"""Fraction of the limit that is left after eviction, so that it does not run for every file."""
COUNT_EVERY = 0.05
"""Fraction of the limit after which a process checks the usage by others."""
SUFFIX = ".safetensors"

logger = logging.getLogger(__name__)


class EmbeddingFiles:
    """Embeddings of one set of encoders. The constructor touches no file; thread-safe.

    Args:
        folder: Shared with the embeddings of other encoders.
        encoders_digest: Hex digest of everything that embeddings depend on, except the image.
        max_bytes: Limit of all files in the folder, including those of other encoders; None for no limit.
    """

    def __init__(self, folder: Path, encoders_digest: str, max_bytes: int | None = None) -> None:
        self.folder = folder
        self.encoders_digest = encoders_digest
        self._max_bytes = max_bytes
        self._known_bytes: int | None = None  # in the folder, at the last check
        self._written_bytes = 0  # since then

    def find(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of a key; None if missing or unreadable."""
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
            self._drop(path, "its content does not match its checksum")
            return None
        with suppress(OSError):  # removed meanwhile, or owned by another user
            os.utime(path)  # LRU: the modification time is the time of last use
        return tensors

    def keep(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Writes tensors under a key; a full disk is logged, and nothing is kept."""
        owned = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = save(owned, {"key": key, "sha256": _digest_of_tensors(owned)})
        path = self.path(key)
        staged = path.with_name(f".{path.stem}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                staged.write_bytes(data)
                os.replace(staged, path)
            finally:
                staged.unlink(missing_ok=True)
            self._make_room(len(data))
        except OSError as error:
            logger.warning("could not store an image embedding in %s: %s", self.folder, error)

    def path(self, key: str) -> Path:
        """Path of a key's file, whether or not it exists."""
        return self.folder / self.encoders_digest[:FOLDER_DIGITS] / key[:2] / f"{key}{SUFFIX}"

    def _drop(self, path: Path, reason: str) -> None:
        logger.warning("%s is corrupt and will be recomputed: %s", path, reason)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("cannot remove it: %s", error)

    def _make_room(self, written_bytes: int) -> None:
        if self._max_bytes is None:
            return
        self._written_bytes += written_bytes
        known = self._known_bytes
        if known is None or self._written_bytes > min(COUNT_EVERY * self._max_bytes, self._max_bytes - known):
            self._known_bytes, self._written_bytes = _bound(self.folder, self._max_bytes), 0


def digest_of_modules(*modules: nn.Module, also: str = "") -> str:
    """Hex sha256 of the modules' tensors and their names, and of further settings."""
    digest = hashlib.sha256(also.encode())
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bound(folder: Path, max_bytes: int) -> int:
    """Evicts the least recently used files above the limit; returns the remaining bytes."""
    files = []
    for path in folder.rglob(f"*{SUFFIX}"):
        try:
            status = path.stat()
        except FileNotFoundError:  # another process evicts, too
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
    """Without a copy, if the tensor is on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
