"""What was computed and may be asked for again, bounded in bytes; what was used longest ago goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")


class Kept(Generic[Key, Item]):
    """Keeps items by key. Not safe to share between threads.

    Args:
        max_bytes: Of all items together; an item larger than this is not kept.
        size_bytes: Of an item.
    """

    def __init__(self, max_bytes: int, size_bytes: Callable[[Key, Item], int]) -> None:
        self.max_bytes = max_bytes
        self.total_bytes = 0
        self._size_bytes = size_bytes
        self._items: OrderedDict[Key, Item] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: Key) -> Item | None:
        """What is kept under a key; it was used now."""
        if key in self._items:
            self._items.move_to_end(key)
        return self._items.get(key)

    def put(self, key: Key, item: Item) -> None:
        """Keeps an item in place of the one under its key."""
        self._drop(key)
        size_bytes = self._size_bytes(key, item)
        if size_bytes > self.max_bytes:
            return
        self._items[key] = item
        self.total_bytes += size_bytes
        while self.total_bytes > self.max_bytes:
            self._drop(next(iter(self._items)))

    def clear(self) -> None:
        """Forgets everything."""
        self._items.clear()
        self.total_bytes = 0

    def _drop(self, key: Key) -> None:
        if key in self._items:
            self.total_bytes -= self._size_bytes(key, self._items.pop(key))
