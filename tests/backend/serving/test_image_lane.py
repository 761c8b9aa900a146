"""Images are read ahead of the encoder, encoded together, each once, also if a caller gives up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from backend.errors import ImageFormatError, ModelUnavailableError, TooLateError
from backend.images.store import UInt8Image
from backend.serving.batch_queue import BatchQueue, Caller, stop_queues
from backend.serving.embedding_store import EmbeddingCache
from backend.serving.image_lane import AHEAD_BATCHES, LOADING_THREADS, MAX_IMAGES, ImageLane
from tests.backend.colours import ColourPredictor, Pixels, picture
from tests.waiting import wait_until


class Gated(ColourPredictor):
    """Encodes when it may; the device, if any, is a CPU."""

    def __init__(self, on_cpu: bool = False) -> None:
        super().__init__()
        self.may, self.sizes = Event(), list[int]()
        if on_cpu:
            self.device = torch.device("cpu")

    def encode(self, images: Sequence[UInt8Image]) -> list[Pixels]:
        self.sizes.append(len(images))
        assert self.may.wait(20)
        return super().encode(images)


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache[Any]:
    found: EmbeddingCache[Any] = EmbeddingCache(10**8, tmp_path, 10**8)
    found.open_files("00", lambda tensors: Pixels(tensors["image"].numpy()))
    return found


@pytest.fixture
def make(cache: EmbeddingCache[Any]) -> Iterator[Callable[[Gated], ImageLane]]:
    lanes: list[ImageLane] = []

    def make_one(predictor: Gated) -> ImageLane:
        lanes.append(ImageLane(cache, BatchQueue))
        lanes[-1].start(predictor)
        return lanes[-1]

    yield make_one
    for lane in lanes:
        stop_queues([lane.loading, lane.encoding])


@pytest.mark.parametrize(("on_cpu", "together"), [(False, MAX_IMAGES), (True, 1)])
def test_images_are_read_ahead_of_the_encoder_and_no_further(
    make: Callable[[Gated], ImageLane], on_cpu: bool, together: int
) -> None:
    predictor, read = Gated(on_cpu), list[int]()
    lane, count = make(predictor), 3 * AHEAD_BATCHES * MAX_IMAGES

    def reads(number: int) -> UInt8Image:
        read.append(number)
        return picture()

    with ThreadPoolExecutor(count) as pool:
        asked = [
            pool.submit(lane.embedding, str(n), lambda n=n: reads(n), Caller(str(n))) for n in range(count)
        ]
        wait_until(lambda: len(read) == AHEAD_BATCHES * together, "they are read")
        wait_until(lambda: len(lane.loading) == count - len(read), "the others wait")
        time.sleep(0.05)
        assert len(read) == AHEAD_BATCHES * together, "not while there is no room"
        predictor.may.set()
        assert {one.result(20)[1] for one in asked} == {"encoder"}

    assert sorted(read) == list(range(count))
    assert max(predictor.sizes) == together
    assert predictor.embedded == count


def test_reading_is_done_by_several_threads(make: Callable[[Gated], ImageLane]) -> None:
    lane = make(Gated())
    reading, may = list[int](), Event()

    def reads() -> UInt8Image:
        reading.append(1)
        assert may.wait(20)
        raise ImageFormatError("damaged")

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(lane.embedding, str(n), reads, Caller(str(n))) for n in range(8)]
        wait_until(lambda: len(reading) == LOADING_THREADS, "all are at work")
        may.set()
        for one in asked:
            with pytest.raises(ImageFormatError):
                one.result(20)


def test_an_image_that_its_first_caller_gave_up_is_there_for_others(
    make: Callable[[Gated], ImageLane], cache: EmbeddingCache[Any]
) -> None:
    predictor = Gated()
    lane = make(predictor)
    with ThreadPoolExecutor(2) as pool:
        hurried = pool.submit(lane.embedding, "a", picture, Caller("hurried", time.monotonic() + 2))
        wait_until(lambda: predictor.sizes == [1], "it is being encoded")
        patient = pool.submit(lane.embedding, "a", picture, Caller("patient"))
        with pytest.raises(TooLateError):
            hurried.result(20)
        predictor.may.set()
        assert patient.result(20)[1] == "memory"
    assert predictor.embedded == 1
    assert cache.get("a") is not None


def test_embeddings_are_on_the_disk_when_they_are_answered(
    make: Callable[[Gated], ImageLane], cache: EmbeddingCache[Any], tmp_path: Path
) -> None:
    predictor = Gated()
    predictor.may.set()
    assert make(predictor).embedding("a", picture, Caller())[1] == "encoder"
    assert len(list(tmp_path.rglob("a.safetensors"))) == 1


def test_a_stop_ends_all_waiting(make: Callable[[Gated], ImageLane]) -> None:
    predictor = Gated(on_cpu=True)
    lane = make(predictor)
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(lane.embedding, str(n), picture, Caller(str(n))) for n in range(5)]
        wait_until(lambda: len(lane.loading) == 5 - AHEAD_BATCHES, "some wait unread")
        lane.loading.stop()
        lane.encoding.stop()
        predictor.may.set()
        results = [one.exception(20) for one in asked]
    lane.loading.join(5)
    assert [result for result in results if result is not None]
    assert all(isinstance(result, ModelUnavailableError | None) for result in results)
