"""Further looks in the lanes of the service: behind first answers, cached, and given up in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np
import pytest

from backend.errors import TooLateError
from backend.serving import lane_viewer
from backend.serving.batch_queue import BatchQueue, Caller, stop_queues, wait_for
from backend.serving.embedding_store import EmbeddingCache
from backend.serving.lane_viewer import TOGETHER, LaneViewer
from sspsam.images.views import Window

ANNA, BERT = Caller("anna"), Caller("bert")
WINDOWS = [Window(0, 0, 4), Window(4, 2, 4), Window(-2, -2, 9)]


@dataclass(frozen=True)
class Part:
    """An embedding of a part of a picture."""

    kind: str
    size: tuple[int, ...]
    size_bytes: int = 1

    def rounded(self) -> Part:
        return self

    def to_tensors(self) -> dict[str, Any]:
        return {}


class Encoders:
    def __init__(self) -> None:
        self.batches: list[int] = []

    def embed(self, image: Any) -> Any:
        self.batches.append(1)
        return Part("tile", image.shape)

    def embed_views(self, image: Any, windows: Sequence[Window]) -> list[Any]:
        self.batches.append(len(windows))
        return [Part("view", window.hw) for window in windows]


class Lanes:
    """Lanes of images and of phrases, and a cache, as of a shared model."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.encoders = Encoders()
        self.images: BatchQueue[Callable[[], Any], Any] = BatchQueue(
            "images", lambda works: [work() for work in works]
        )
        self.phrases: BatchQueue[Any, Any] = BatchQueue("phrases", self._answer, max_batch=8)
        self.cache: EmbeddingCache[Any] = EmbeddingCache(100)
        self.reads = 0
        for lane in (self.images, self.phrases):
            lane.start()

    def _answer(self, asked: Sequence[Any]) -> list[str]:
        return [f"{model}: {question}" for model, question in asked]

    def read(self) -> Any:
        self.reads += 1
        return np.zeros((8, 8, 3), np.uint8)

    def viewer(self, caller: Caller = ANNA, read: Callable[[], Any] | None = None) -> LaneViewer:
        model: Any = "version 3"
        return LaneViewer(
            self.encoders, self.images, self.phrases, self.cache, "picture", read or self.read, model, caller
        )


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    made = Lanes()
    yield made
    stop_queues([made.images, made.phrases])


def test_views_are_encoded_together_and_once(lanes: Lanes) -> None:
    viewer = lanes.viewer()
    assert viewer.embed_views(WINDOWS) == [Part("view", (4, 4)), Part("view", (4, 4)), Part("view", (9, 9))]
    assert lanes.viewer(BERT).embed_views(WINDOWS[1:]) == [Part("view", (4, 4)), Part("view", (9, 9))]
    assert lanes.encoders.batches == [3]
    assert lanes.reads == 1


def test_tiles_are_cut_from_the_picture(lanes: Lanes) -> None:
    tiles = [Window(left, top, 2) for left in range(0, 8, 2) for top in range(0, 8, 2)]
    assert lanes.viewer().embed_tiles(tiles) == [Part("tile", (2, 2, 3))] * 16
    assert lanes.reads == 1
    assert lanes.viewer().embed_views(tiles[:1]) == [Part("view", (2, 2))], "a tile is no view"


def test_others_images_come_first(lanes: Lanes) -> None:
    """Also between the views of one request, some at a time."""
    begun, may = Event(), Event()

    def slowly() -> None:
        begun.set()
        may.wait(20)

    lanes.images.submit([slowly], ANNA)
    assert begun.wait(20)
    windows = [Window(number, 0, 4) for number in range(2 * TOGETHER)]
    order: list[str] = []
    some = [lambda number=number: order.append(f"look {number}") for number in range(2)]
    looks = lanes.images.submit(some, ANNA, urgent=False)
    [first] = lanes.images.submit([lambda: order.append("image")], BERT)
    may.set()
    for future in (first, *looks):
        wait_for(future, BERT)
    assert order == ["image", "look 0", "look 1"]
    lanes.viewer().embed_views(windows)
    assert lanes.encoders.batches == [TOGETHER, TOGETHER]


def test_what_is_not_ready_in_time_is_left_out_and_cached_for_later(
    lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_viewer, "LOOK_WAIT_S", 0.05)
    may = Event()

    def read_slowly() -> Any:
        may.wait(20)
        return lanes.read()

    viewer = lanes.viewer(read=read_slowly)
    assert viewer.embed_views(WINDOWS) == [None] * 3
    may.set()
    [after] = lanes.images.submit([lambda: "after"], BERT, urgent=False)
    wait_for(after, BERT)
    assert viewer.embed_views(WINDOWS)[0] == Part("view", (4, 4))
    assert len(lanes.encoders.batches) == 1


def test_half_of_the_callers_time_is_left_for_its_answer(
    lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_viewer, "LOOK_WAIT_S", 1000.0)
    assert 40 < lanes.viewer(Caller("anna", time.monotonic() + 100))._left_s <= 50


def test_a_picture_that_cannot_be_read_again_costs_no_answer(lanes: Lanes) -> None:
    def fail() -> Any:
        raise OSError("gone")

    assert lanes.viewer(read=fail).embed_views(WINDOWS) == [None] * 3


def test_questions_are_for_the_model_of_the_first_answer(
    lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: Any = ["box", "point"]
    viewer = lanes.viewer()
    answers: Any = viewer.decode(questions)
    assert answers == ["version 3: box", "version 3: point"]
    assert len(viewer.asked) == 2
    monkeypatch.setattr(lane_viewer, "LOOK_WAIT_S", 0.0)
    lanes.phrases.stop()
    with pytest.raises(TooLateError, match="no time for a further look"):
        lanes.viewer().decode(questions)
