"""The embedding cache stays within its size limit and evicts by LRU."""

from __future__ import annotations

from dataclasses import dataclass

from backend.serving.embedding_store import EmbeddingCache


@dataclass(frozen=True)
class Block:
    size_bytes: int


def test_the_least_recently_used_leave_first() -> None:
    cache: EmbeddingCache[Block] = EmbeddingCache(max_bytes=10)
    for key in "abc":
        cache.put(key, Block(3))
    assert cache.get("a") == Block(3)

    cache.put("d", Block(3))

    assert [key for key in "abcd" if cache.get(key)] == ["a", "c", "d"]
    assert (len(cache), cache.size_bytes) == (3, 9)


def test_a_replaced_item_is_not_counted_twice() -> None:
    cache: EmbeddingCache[Block] = EmbeddingCache(max_bytes=10)
    for size in (3, 5):
        cache.put("a", Block(size))

    assert (len(cache), cache.size_bytes) == (1, 5)


def test_what_does_not_fit_is_not_kept() -> None:
    cache: EmbeddingCache[Block] = EmbeddingCache(max_bytes=10)
    cache.put("a", Block(4))

    cache.put("b", Block(11))

    assert cache.get("b") is None
    assert cache.get("a") == Block(4)


def test_without_memory_nothing_is_kept() -> None:
    cache: EmbeddingCache[Block] = EmbeddingCache(max_bytes=0)

    cache.put("a", Block(1))

    assert (len(cache), cache.size_bytes) == (0, 0)
