"""State in Redis, and graceful degradation without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from redis import ConnectionPool, Redis, UnixDomainSocketConnection
from redis.backoff import NoBackoff
from redis.retry import Retry

from backend.labelstudio.predictions import ProposedRegion
from backend.shared_redis import SERVED_KEY, SHOWN_KEY
from backend.state.displayed_masks import DisplayedMask
from backend.state.known_projects import KnownProject
from backend.state.redis_store import MOST_SHOWN, RedisStore
from sspsam.images.masks import coco_rle_to_mask, mask_to_coco_rle


@pytest.fixture
def redis_store(redis_server: Redis) -> RedisStore:
    return RedisStore(redis_server)


def proposed(phrase: str, column: int) -> tuple[ProposedRegion, dict[str, Any]]:
    mask = np.zeros((6, 8), dtype=np.bool_)
    mask[:, column] = True
    return ProposedRegion("r1", phrase, mask, 0.5), mask_to_coco_rle(mask)


def test_the_mask_served_last_is_the_one_that_counts(redis_store: RedisStore) -> None:
    redis_store.note_served([proposed("a cat", 1)], "v1")
    redis_store.note_served([proposed("a cat", 2)], "v2")

    served = redis_store.served("r1")

    assert served is not None
    assert served.version == "v2"
    assert np.flatnonzero(coco_rle_to_mask(served.rle).any(axis=0)).tolist() == [2]


def test_the_last_masks_of_a_region_are_kept(redis_store: RedisStore, redis_server: Redis) -> None:
    for column in (0, 1, 2, 3, 4, 3):
        redis_store.note_served([proposed("a cat", column)], f"v{column}")

    assert [mask.version for mask in redis_store.proposals("r1")] == ["v3", "v4", "v2", "v1"]
    assert redis_store.proposals("r1")[1].rle == proposed("a cat", 4)[1]
    redis_server.hdel(SERVED_KEY.format(region="r1"), "earlier")
    assert [mask.version for mask in redis_store.proposals("r1")] == ["v3"], "as an earlier release wrote it"
    redis_server.hset(SERVED_KEY.format(region="r1"), "earlier", "[1]")
    assert [mask.version for mask in redis_store.proposals("r1")] == ["v3"]
    assert redis_store.proposals("r2") == []


def test_a_phrase_that_got_a_mask_is_unmatched_no_more(redis_store: RedisStore) -> None:
    redis_store.note_nothing_found("1", "2", ["Zebra", "boat"], [], "v1")
    assert redis_store.nothing_found("1", "2") == {"zebra": "v1", "boat": "v1"}

    redis_store.note_nothing_found("1", "2", ["boat"], ["ZEBRA"], "v2")

    assert redis_store.nothing_found("1", "2") == {"boat": "v2"}
    assert redis_store.nothing_found("1", "3") == {}


def test_projects_keep_what_a_later_call_does_not_tell(redis_store: RedisStore) -> None:
    redis_store.projects.note(KnownProject("7", "<View/>", "Streets", {"phrase": "car"}, "2026-01-01"))
    redis_store.projects.note(KnownProject("8", "<View/>", seen_at="2026-01-02"))
    redis_store.projects.note(KnownProject("7", "<View></View>", seen_at="2026-01-03"))

    assert redis_store.projects.all() == [
        KnownProject("7", "<View></View>", "Streets", {"phrase": "car"}, "2026-01-03"),
        KnownProject("8", "<View/>", seen_at="2026-01-02"),
    ]
    assert redis_store.projects.get("9") is None


def test_without_redis_everything_is_empty_and_redis_is_left_in_peace() -> None:
    """Each try may take seconds, and an annotator waits."""
    tries: list[int] = []

    class Refused(UnixDomainSocketConnection):
        def _connect(self) -> Any:
            tries.append(1)
            raise ConnectionRefusedError

    pool = ConnectionPool(connection_class=Refused, path="/nowhere", retry=Retry(NoBackoff(), 0))
    redis_store = RedisStore(Redis(connection_pool=pool))

    for _ in range(100):
        redis_store.note_served([proposed("a cat", 1)], "v1")
        redis_store.note_nothing_found("1", "2", ["zebra"], ["cat"], "v1")
        redis_store.projects.note(KnownProject("7"))
        redis_store.note_shown("1", "2", [DisplayedMask("r1", "a cat", {})])
        redis_store.mark_message_sent("1", "2")
        assert redis_store.shown("1", "2") == []
        assert not redis_store.pop_message_sent("1", "2")
        assert redis_store.served("r1") is None
        assert redis_store.nothing_found("1", "2") == {}
        assert redis_store.projects.all() == []
        assert redis_store.worker.decision("7") == redis_store.worker.progress("7") == {}

    assert not redis_store.alive()
    assert 2 <= len(tries) < 20


def test_displayed_masks_of_a_task_are_bounded(redis_store: RedisStore, redis_server: Redis) -> None:
    masks = [DisplayedMask(str(number), "", {}, shown_s=float(number)) for number in range(MOST_SHOWN + 30)]
    redis_store.note_shown("1", "2", reversed(masks))

    assert redis_store.shown("1", "2") == masks[30:]
    assert redis_server.hlen(SHOWN_KEY.format(project="1", task="2")) == MOST_SHOWN
