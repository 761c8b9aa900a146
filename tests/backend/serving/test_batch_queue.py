"""Batch queues: fair between callers, batched when concurrent, and without work for abandoned requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from threading import Event

import pytest

from backend.errors import ModelBusyError, ModelUnavailableError, TooLateError
from backend.serving.batch_queue import (
    END_S,
    AdmissionLimit,
    BatchQueue,
    Caller,
    FairQueue,
    Pending,
    stop_queues,
    wait_for,
)
from tests.waiting import wait_until

ANNA, BERT, CLEO = Caller("anna"), Caller("bert"), Caller("cleo")


class Slowly:
    """Doubles numbers, once it may; keeps what it was given together."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may = Event()
        self.begun = Event()

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.begun.set()
        assert self.may.wait(20)
        self.batches.append(list(numbers))
        return [2 * number for number in numbers]


@pytest.fixture
def make_lane() -> Iterator[Callable[..., BatchQueue[int, int]]]:
    """Makes lanes that are stopped at the end of the test."""
    lanes: list[BatchQueue[int, int]] = []

    def make(perform: Callable[[Sequence[int]], Sequence[int]], **options: object) -> BatchQueue[int, int]:
        lanes.append(BatchQueue("test", perform, **options))
        lanes[-1].start()
        return lanes[-1]

    yield make
    stop_queues(lanes)


def busy(lane: BatchQueue[int, int], slowly: Slowly) -> None:
    """Gives the lane a first piece that it does not end before it may."""
    lane.submit([0], Caller("first"))
    assert slowly.begun.wait(20)


def test_callers_take_turns() -> None:
    queue: FairQueue[int, int] = FairQueue()
    for number in range(5):
        queue.put(Pending(number, ANNA))
    queue.put(Pending(10, BERT))
    queue.put(Pending(20, CLEO))
    queue.put(Pending(11, BERT))

    taken = [piece.work for _ in range(3) for piece in queue.take()]
    queue.put(Pending(30, Caller("dora")))
    taken += [piece.work for _ in range(len(queue)) for piece in queue.take()]

    assert taken == [0, 10, 20, 1, 11, 30, 2, 3, 4]
    assert queue.take() == []


def test_items_of_a_kind_are_taken_together() -> None:
    queue: FairQueue[int, int] = FairQueue(kind=lambda number: number // 10)
    for caller, number in enumerate((10, 20, 11, 30, 21, 12)):
        queue.put(Pending(number, Caller(str(caller))))
    queue.put(Pending(13, Caller("0")))

    taken = [[piece.work for piece in queue.take(most)] for most in (2, 8, 8, 8, 8)]

    assert taken == [[10, 11], [20, 21], [30], [12, 13], []]


@pytest.mark.parametrize("busy_kinds", [1, 3])
def test_a_rare_kind_is_not_starved(busy_kinds: int) -> None:
    """Thirty callers of busy kinds always ask again at once; one of another kind asks now and then."""
    queue: FairQueue[int, int] = FairQueue(kind=lambda number: number)
    for caller in range(30):
        queue.put(Pending(caller % busy_kinds, Caller(str(caller))))
    waits = []
    for _ in range(20):
        queue.put(Pending(99, Caller("rare")))
        waits.append(0)
        batch: list[Pending[int, int]] = []
        while all(piece.work != 99 for piece in batch):
            waits[-1] += 1
            batch = []
            while len(batch) < 16:
                batch += queue.take(16 - len(batch))
            for piece in batch:
                if piece.work != 99:
                    queue.put(Pending(piece.work, piece.caller))

    assert max(waits) <= 2 + busy_kinds


def test_what_waits_is_done_together(make_lane: Callable[..., BatchQueue[int, int]]) -> None:
    slowly, seen = Slowly(), []
    lane = make_lane(slowly, max_batch=4, on_batch=lambda size, waited_s: seen.append((size, waited_s)))
    busy(lane, slowly)

    many = lane.submit([1, 2, 3, 4, 5], ANNA)
    [one] = lane.submit([6], BERT)
    assert len(lane) == 6
    slowly.may.set()

    assert [wait_for(future, ANNA) for future in many] == [2, 4, 6, 8, 10]
    assert wait_for(one, BERT) == 12
    assert slowly.batches == [[0], [1, 6, 2, 3], [4, 5]]
    wait_until(lambda: len(seen) == 3, "every batch was told")
    assert [size for size, _ in seen] == [1, 4, 2]
    assert all(waited_s >= 0 for _, waited_s in seen)


def test_what_was_overtaken_for_long_takes_turns_with_what_is_urgent(
    make_lane: Callable[..., BatchQueue[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.serving.batch_queue.OVERTAKEN_S", 0.02)
    slowly = Slowly()
    lane = make_lane(slowly)
    busy(lane, slowly)
    looks = lane.submit([1, 2, 3], ANNA, urgent=False)
    first = [future for name in "abcd" for future in lane.submit([10], Caller(name))]
    time.sleep(0.05)
    slowly.may.set()
    assert [future.result(20) for future in [*looks, *first]] == [2, 4, 6, 20, 20, 20, 20]
    assert slowly.batches == [[0], [1], [10], [2], [10], [3], [10], [10]]


def test_what_is_not_urgent_waits_for_what_is(make_lane: Callable[..., BatchQueue[int, int]]) -> None:
    """Of any caller; and it does not fill up the batch of an urgent one."""
    slowly, late = Slowly(), []
    lane = make_lane(slowly, max_batch=4, on_late=lambda: late.append(1))
    busy(lane, slowly)

    [*looks, given_up] = lane.submit([1, 2, 3], ANNA, urgent=False)
    [first] = lane.submit([6], BERT)
    assert given_up.cancel()
    slowly.may.set()

    assert wait_for(first, BERT) == 12
    assert [wait_for(future, ANNA) for future in looks] == [2, 4]
    assert slowly.batches == [[0], [6], [1, 2]]
    assert not late


def test_pieces_that_come_soon_after_each_other_are_done_together(
    make_lane: Callable[..., BatchQueue[int, int]],
) -> None:
    slowly = Slowly()
    slowly.may.set()
    lane = make_lane(slowly, max_batch=3, gather_s=10.0)

    first = lane.submit([1, 2], Caller("bert"))
    futures = [*first, *lane.submit([3], ANNA)]

    assert [wait_for(future, ANNA) for future in futures] == [2, 4, 6]
    assert slowly.batches == [[1, 3, 2]], "a full batch does not wait longer"


def test_who_comes_alone_waits_for_nobody(make_lane: Callable[..., BatchQueue[int, int]]) -> None:
    slowly = Slowly()
    slowly.may.set()
    lane = make_lane(slowly, max_batch=8, gather_s=1000.0)

    for number in (1, 2):
        assert wait_for(lane.submit([number], ANNA)[0], Caller("anna", time.monotonic() + 20)) == 2 * number
    assert slowly.batches == [[1], [2]]


def test_several_wait_for_more_no_longer_than_they_should(
    make_lane: Callable[..., BatchQueue[int, int]],
) -> None:
    slowly = Slowly()
    slowly.may.set()
    lane = make_lane(slowly, max_batch=8, gather_s=0.01)

    futures = lane.submit([1, 2], ANNA)

    assert [wait_for(future, Caller("anna", time.monotonic() + 20)) for future in futures] == [2, 4]
    assert slowly.batches == [[1, 2]]


def test_nothing_is_done_for_who_gave_up(make_lane: Callable[..., BatchQueue[int, int]]) -> None:
    slowly, late = Slowly(), []
    lane = make_lane(slowly, max_batch=4, on_late=lambda: late.append("late"))
    busy(lane, slowly)
    hurried = Caller("hurried", time.monotonic() + 0.05)

    [waited_for, forgotten] = lane.submit([1, 2], hurried)
    [patient] = lane.submit([3], ANNA)
    with pytest.raises(TooLateError, match="ask again"):
        wait_for(waited_for, hurried)
    slowly.may.set()

    assert wait_for(patient, ANNA) == 6
    with pytest.raises(TooLateError):
        forgotten.result(20)
    assert slowly.batches == [[0], [3]]
    assert late == ["late", "late"]


def test_a_piece_that_fails_spoils_no_other(make_lane: Callable[..., BatchQueue[int, int]]) -> None:
    asked: list[list[int]] = []

    def invert(numbers: Sequence[int]) -> list[float]:
        asked.append(list(numbers))
        return [1 / number for number in numbers]

    lane = make_lane(invert, max_batch=3, gather_s=10.0)
    one, none, half = lane.submit([1, 0, 2], ANNA)

    assert (wait_for(one, ANNA), wait_for(half, ANNA)) == (1, 0.5)
    with pytest.raises(ZeroDivisionError):
        wait_for(none, ANNA)
    assert asked == [[1, 0, 2], [1], [0], [2]]
    assert wait_for(lane.submit([4, 4, 4], ANNA)[2], ANNA) == 0.25, "the lane goes on"


def test_who_waits_is_told_when_a_lane_is_stopped(make_lane: Callable[..., BatchQueue[int, int]]) -> None:
    slowly = Slowly()
    lane = make_lane(slowly)
    busy(lane, slowly)
    [future] = lane.submit([1], ANNA)
    slowly.may.set()
    stop_queues([lane])

    if not future.cancelled():  # it may have been its turn before
        assert future.result(20) == 2
    [late] = lane.submit([1], ANNA)
    assert late.cancelled()
    assert len(lane) == 0
    with pytest.raises(ModelUnavailableError, match="stopping"):
        wait_for(late, ANNA)


@pytest.mark.slow
def test_busy_lanes_are_waited_for_side_by_side(make_lane: Callable[..., BatchQueue[int, int]]) -> None:
    slow = [Slowly() for _ in range(3)]
    lanes = [make_lane(slowly) for slowly in slow]
    for lane, slowly in zip(lanes, slow, strict=True):
        busy(lane, slowly)
    since_s = time.monotonic()
    stop_queues(lanes)
    assert END_S <= time.monotonic() - since_s < 2 * END_S
    for slowly in slow:
        slowly.may.set()


def test_a_lane_that_never_ran_can_be_stopped() -> None:
    lane: BatchQueue[int, int] = BatchQueue("test", Slowly())
    [early] = lane.submit([1], ANNA)
    lane.stop()
    lane.start()

    [late] = lane.submit([1], ANNA)
    assert early.cancelled()
    assert late.cancelled()


def test_only_so_many_are_let_in_and_half_of_them_may_be_one_callers() -> None:
    entrance = AdmissionLimit(4)
    with entrance.enter(ANNA), entrance.enter(ANNA):
        with pytest.raises(ModelBusyError, match="2 requests wait: try again"), entrance.enter(ANNA):
            pass
        with entrance.enter(BERT), entrance.enter(CLEO):
            assert entrance.inside == 4
            with pytest.raises(ModelBusyError, match="4 requests"), entrance.enter(Caller("dora")):
                pass
        with entrance.enter(BERT):
            pass
    assert entrance.inside == 0
