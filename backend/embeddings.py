"""Image embeddings in memory, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Something that knows how much memory it takes."""

    @property
    def size_bytes(self) -> int: ...


Item = TypeVar("Item", bound=Sized)


class EmbeddingCache(Generic[Item]):
    """Keeps what was used last. Safe to share between threads.

    Args:
        max_bytes: Of all items together; an item larger than this is not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self._items: OrderedDict[str, Item] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: str) -> Item | None:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
            return self._items.get(key)

    def put(self, key: str, item: Item) -> None:
        with self._lock:
            self._drop(key)
            if item.size_bytes > self.max_bytes:
                return
            self._items[key] = item
            self.size_bytes += item.size_bytes
            while self.size_bytes > self.max_bytes:
                self._drop(next(iter(self._items)))

    def _drop(self, key: str) -> None:
        item = self._items.pop(key, None)
        if item is not None:
            self.size_bytes -= item.size_bytes
