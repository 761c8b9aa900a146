"""Cache of image embeddings: in memory, bounded in bytes, and on the disk shared by backends and workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Generic, Literal, Protocol, Self, TypeVar

from cachetools import LRUCache

if TYPE_CHECKING:
    from torch import Tensor

    from sspsam.caching.embedding_files import EmbeddingFiles

EmbeddingOrigin = Literal["memory", "disk", "encoder"]
"""Source of an embedding."""


class Storable(Protocol):
    """An item with a known memory size and a serialised form."""

    @property
    def size_bytes(self) -> int: ...

    def rounded(self) -> Self: ...

    def to_tensors(self) -> dict[str, Tensor]: ...


Item = TypeVar("Item", bound=Storable)

logger = logging.getLogger(__name__)


class EmbeddingCache(Generic[Item]):
    """LRU cache. Thread-safe.

    Args:
        max_bytes: Limit of all items in memory; larger items are not cached there.
        folder: Folder of the disk cache; None for memory only.
        max_disk_bytes: Limit of all files in the folder; None for no limit.
    """

    def __init__(self, max_bytes: int, folder: Path | None = None, max_disk_bytes: int | None = None) -> None:
        self.folder = folder
        self.max_disk_bytes = max_disk_bytes
        self._items: LRUCache[str, Item] = LRUCache(max_bytes, lambda item: item.size_bytes)
        self._lock = Lock()
        self._files: EmbeddingFiles | None = None
        self._from_tensors: Callable[[Mapping[str, Tensor]], Item] | None = None

    def __len__(self) -> int:
        """Number of items in memory."""
        return len(self._items)

    @property
    def size_bytes(self) -> int:
        """Of all items in memory."""
        return int(self._items.currsize)

    def open_files(self, encoders_digest: str, from_tensors: Callable[[Mapping[str, Tensor]], Item]) -> None:
        """Enables the disk cache, if there is a folder for it.

        Args:
            encoders_digest: Digest of the encoders that produce the items.
            from_tensors: Inverse of `to_tensors`.
        """
        if self.folder is not None:
            from sspsam.caching.embedding_files import EmbeddingFiles

            self._files = EmbeddingFiles(self.folder, encoders_digest, self.max_disk_bytes)
            self._from_tensors = from_tensors

    def get(self, key: str) -> Item | None:
        """Returns an item from memory."""
        with self._lock:
            return self._items.get(key)

    def find(self, key: str) -> tuple[Item, EmbeddingOrigin] | None:
        """Returns an item from memory or disk, and its source; an item from disk is then cached in memory."""
        item = self.get(key)
        if item is not None:
            return item, "memory"
        if self._files is None or self._from_tensors is None:
            return None
        tensors = self._files.find(key)
        if tensors is None:
            return None
        try:
            item = self._from_tensors(tensors)
        except (KeyError, ValueError) as error:
            logger.warning("cannot use the cached item %s: %r", key, error)
            return None
        self.remember(key, item)
        return item, "disk"

    def as_read(self, item: Item) -> Item:
        """A new item as it would be read from the disk, so that an answer does not depend on where its
        embedding comes from; without a disk cache, the item as it is.
        """
        return item if self._files is None else item.rounded()

    def put(self, key: str, item: Item) -> None:
        """Stores an item in memory and, if enabled, on disk."""
        self.remember(key, item)
        self.write(key, item)

    def write(self, key: str, item: Item) -> None:
        """Stores an item on disk alone, if that is enabled."""
        if self._files is not None:
            self._files.keep(key, item.to_tensors())

    def remember(self, key: str, item: Item) -> None:
        """Stores an item in memory alone."""
        with self._lock, suppress(ValueError):  # larger than the whole cache
            self._items[key] = item
