"""What is kept in Redis, and that its absence costs little."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from redis import ConnectionPool, Redis, UnixDomainSocketConnection
from redis.backoff import NoBackoff
from redis.retry import Retry

from backend.labelstudio.predictions import ProposedRegion
from backend.state.displayed_masks import ShownMask
from backend.state.redis_store import KnownProject, Memory
from sspsam.images.masks import coco_rle_to_mask, mask_to_coco_rle


@pytest.fixture
def memory(redis_server: Redis) -> Memory:
    return Memory(redis_server)


def proposed(phrase: str, column: int) -> tuple[ProposedRegion, dict[str, Any]]:
    mask = np.zeros((6, 8), dtype=np.bool_)
    mask[:, column] = True
    return ProposedRegion("r1", phrase, mask, 0.5), mask_to_coco_rle(mask)


def test_the_mask_served_last_is_the_one_that_counts(memory: Memory) -> None:
    memory.note_served("1", "2", [proposed("a cat", 1)], "v1")
    memory.note_served("1", "2", [proposed("a cat", 2)], "v2")

    served = memory.served("r1")

    assert served is not None
    assert memory.served_on("1", "2") == {"r1"}
    assert memory.served_on("1", "3") == set()
    assert served.version == "v2"
    assert np.flatnonzero(coco_rle_to_mask(served.rle).any(axis=0)).tolist() == [2]


def test_a_phrase_that_got_a_mask_is_unmatched_no_more(memory: Memory) -> None:
    memory.note_unmatched("1", "2", ["Zebra", "boat"], [])
    assert memory.unmatched("1", "2") == {"zebra", "boat"}

    memory.note_unmatched("1", "2", [], ["ZEBRA"])

    assert memory.unmatched("1", "2") == {"boat"}
    assert memory.unmatched("1", "3") == set()


def test_projects_keep_what_a_later_call_does_not_tell(memory: Memory) -> None:
    memory.note_project(KnownProject("7", "<View/>", "Streets", {"phrase": "car"}, "2026-01-01"))
    memory.note_project(KnownProject("8", "<View/>", seen_at="2026-01-02"))
    memory.note_project(KnownProject("7", "<View></View>", seen_at="2026-01-03"))

    assert memory.projects() == [
        KnownProject("7", "<View></View>", "Streets", {"phrase": "car"}, "2026-01-03"),
        KnownProject("8", "<View/>", seen_at="2026-01-02"),
    ]
    assert memory.project("9") is None


def test_without_redis_everything_is_empty_and_redis_is_left_in_peace() -> None:
    """Each try may take seconds, and an annotator waits."""
    tries: list[int] = []

    class Refused(UnixDomainSocketConnection):
        def _connect(self) -> Any:
            tries.append(1)
            raise ConnectionRefusedError

    pool = ConnectionPool(connection_class=Refused, path="/nowhere", retry=Retry(NoBackoff(), 0))
    memory = Memory(Redis(connection_pool=pool))

    for _ in range(100):
        memory.note_served("1", "2", [proposed("a cat", 1)], "v1")
        memory.note_unmatched("1", "2", ["zebra"], ["cat"])
        memory.note_project(KnownProject("7"))
        memory.note_shown("1", "2", [ShownMask("r1", "a cat", {})])
        memory.note_said("1", "2")
        assert memory.shown("1", "2") == []
        assert not memory.take_said("1", "2")
        assert memory.served("r1") is None
        assert memory.unmatched("1", "2") == set()
        assert memory.projects() == []
        assert memory.decision("7") == memory.progress("7") == {}

    assert not memory.alive()
    assert 2 <= len(tries) < 20
