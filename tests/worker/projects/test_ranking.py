"""Ranking of arrays whose correct order is obvious."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from worker.projects import active_learning
from worker.projects.active_learning import learning_scores


def order(certainties: list[float], descriptors: npt.NDArray[np.float32]) -> list[int]:
    scores = learning_scores(np.array(certainties, np.float32), descriptors.astype(np.float32))
    assert ((scores >= 0) & (scores <= 1)).all()
    return [int(place) for place in scores.argsort(kind="stable")]


def test_of_different_pictures_the_least_certain_comes_first() -> None:
    assert order([0.9, 0.1, 0.5, 0.3], np.eye(4)) == [1, 3, 2, 0]


def test_a_near_duplicate_waits_for_what_is_new() -> None:
    pictures = np.eye(4)
    pictures[1] = pictures[0] + [0.01, 0, 0, 0]
    assert order([0.1, 0.1, 0.5, 0.6], pictures) == [0, 2, 3, 1]


def test_of_many_duplicates_one_comes_early() -> None:
    pictures = np.repeat(np.eye(5), [6, 1, 1, 1, 1], axis=0)
    first = order([0.2] * 6 + [0.3, 0.4, 0.5, 0.6], pictures)
    assert first[:5] == [0, 6, 7, 8, 9]


def test_scores_ascend_along_the_order_in_which_tasks_were_chosen() -> None:
    rng = np.random.default_rng(0)
    certainties, descriptors = rng.random(60).astype(np.float32), rng.normal(size=(60, 8)).astype(np.float32)
    scores = learning_scores(certainties, descriptors)
    first = int(certainties.argmin())
    assert scores.argmin() == first
    assert scores[first] == pytest.approx(certainties[first], abs=1e-6)
    assert (scores >= certainties - 1e-6).all(), "likeness can only put a task behind"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_tasks(count: int) -> None:
    assert len(order([0.5] * count, np.ones((count, 3)))) == count


def test_pictures_that_do_not_differ_are_in_the_order_of_certainty() -> None:
    assert order([0.3, 0.1, 0.2], np.ones((3, 4))) == [1, 2, 0]


def test_beyond_so_many_picks_what_is_left_is_scored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(active_learning, "MAX_PICKS", 2)
    assert order([0.9, 0.1, 0.5, 0.3], np.eye(4)) == [1, 3, 2, 0]
