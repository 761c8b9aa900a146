"""Parallel rows of a batch: in order, each with its share of the cores, with unchanged answers."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import psutil
import pytest
import torch

import sspsam
from sspsam.results import Question
from sspsam.runtime.cores import Cores, limit_torch_threads
from tests.waiting import wait_until

CORES = 4


@pytest.fixture
def four_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(CORES)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(
    ("rows", "runs", "share"), [(2, [1, 1], 2), (3, [1, 1, 1], 1), (4, [1, 1, 1, 1], 1), (9, [2, 2, 2, 3], 1)]
)
def test_rows_run_at_once_each_with_its_share_of_the_cores(rows: int, runs: list[int], share: int) -> None:
    together = threading.Barrier(len(runs), timeout=60)
    seen: list[tuple[int, int]] = []

    def answer(some: Sequence[int]) -> list[int]:
        together.wait()  # ends only when all are at work
        seen.append((len(some), torch.get_num_threads()))
        return [2 * row for row in some]

    cores = Cores()
    for _ in range(2):
        seen.clear()
        assert cores.map(answer, range(rows)) == [2 * row for row in range(rows)]
        assert sorted(seen) == [(run, share) for run in runs]
    assert torch.get_num_threads() == CORES, "the caller keeps all of them"


@pytest.mark.usefixtures("four_cores")
def test_one_row_is_answered_by_the_caller() -> None:
    assert Cores().map(lambda rows: [threading.current_thread() for _ in rows], [0]) == [
        threading.current_thread()
    ]


@pytest.mark.usefixtures("four_cores")
def test_cores_are_reserved_for_those_who_had_them() -> None:
    cores = Cores()
    limit_torch_threads()
    others: list[int] = []
    thread = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [*others, torch.get_num_threads()] == [1, 1]
    assert cores.run(torch.get_num_threads) == CORES
    assert cores.map(lambda rows: [torch.get_num_threads() for _ in rows], [0]) == [CORES]
    assert cores.map(lambda rows: [torch.get_num_threads() for _ in rows], range(4)) == [1, 1, 1, 1]


@pytest.fixture
def mkl_threads() -> Callable[[], int]:
    """How many threads MKL takes for a product of the calling thread."""
    try:
        found: Callable[[], int] = ctypes.CDLL(torch._C.__file__).MKL_Get_Max_Threads
    except AttributeError:
        pytest.skip("PyTorch has no MKL here")
    return found


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize("later", [None, CORES, 2 * CORES])
def test_products_of_a_row_take_its_share_whatever_a_caller_sets(
    later: int | None, mkl_threads: Callable[[], int]
) -> None:
    cores = Cores()
    for rows, share in ((2, 2), (CORES, 1), (2, 2)):
        if later is not None:
            torch.set_num_threads(later)  # of this thread, and of all that start from now on
        together = threading.Barrier(rows, timeout=60)

        def answer(some: Sequence[int], together: threading.Barrier = together) -> list[tuple[int, int]]:
            together.wait()
            return [(mkl_threads(), torch.get_num_threads()) for _ in some]

        assert cores.map(answer, range(rows)) == [(share, share)] * rows
    assert cores.map(lambda some: [mkl_threads() for _ in some], [0]) == [CORES]
    assert cores.run(mkl_threads) == CORES


@pytest.mark.usefixtures("four_cores")
def test_products_of_rows_start_no_further_threads() -> None:
    cores, later = Cores(), 2 * CORES
    torch.set_num_threads(later)
    left, right = torch.randn(400, 300), torch.randn(300, 400)
    before = {thread.id for thread in psutil.Process().threads()}
    together = threading.Barrier(CORES, timeout=60)

    def answer(some: Sequence[int]) -> list[torch.Tensor]:
        together.wait()
        return [torch.mm(left, right, out=torch.empty(400, 400)) for _ in some]  # always by MKL

    cores.map(answer, range(CORES))
    assert len({thread.id for thread in psutil.Process().threads()} - before) <= CORES


@pytest.mark.usefixtures("four_cores")
def test_a_large_operation_leaves_no_thread_behind() -> None:
    def threads() -> set[int]:
        return {thread.id for thread in psutil.Process().threads()}

    def work() -> set[int]:
        torch.randn(2000, 2000).exp_()
        return threads()

    before = threads()
    its_own = Cores().run(work) - before
    assert len(its_own) == CORES, "one, and those that share its operation"
    wait_until(lambda: not its_own & threads(), "they have ended")


@pytest.mark.usefixtures("four_cores")
def test_an_error_reaches_the_caller() -> None:
    cores = Cores()
    with pytest.raises(ZeroDivisionError):
        cores.map(lambda rows: [1 // row for row in rows], range(6))
    with pytest.raises(ZeroDivisionError):
        cores.run(lambda: 1 // 0)
    assert cores.map(list, range(6)) == list(range(6))


@pytest.mark.usefixtures("four_cores")
def test_a_batch_is_answered_as_its_phrases_are_alone() -> None:
    predictor = sspsam.Predictor.from_preset("ssp-sam-test", "cpu")
    pictures = np.random.default_rng(0).integers(0, 256, (3, 90, 120, 3), dtype=np.uint8)
    embeddings = [predictor.embed(picture) for picture in pictures]
    questions = [
        Question(embeddings[number % 3], phrase)
        for number, phrase in enumerate(["a", "red", "car", "on", "the", "left"])
    ]
    questions.insert(2, Question(embeddings[0], "", points=np.array([[30, 30, 1]], np.float32)))
    together = predictor.decode(questions)
    for question, answer in zip(questions, together, strict=True):
        [alone] = predictor.decode([question])
        assert answer.question is question
        torch.testing.assert_close(answer.mask_logits, alone.mask_logits, rtol=1e-4, atol=1e-4)
        assert answer.score == pytest.approx(alone.score, abs=1e-5)
