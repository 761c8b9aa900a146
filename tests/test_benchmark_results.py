"""Stored benchmark results."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.common.results import Results, fine_tuning
from benchmarks.common.sections import with_section

CONDITIONS = {"weights": "0123", "fresh": 60}
KEY = ("noun", "corrections")
KOALA = {"noun": "koala", "corrections": 5, "after": 0.65}
PIZZA = {"noun": "pizza", "corrections": 5, "after": 0.82}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lessons.jsonl"


def test_what_was_measured_is_there_the_next_time(path: Path) -> None:
    Results(path, CONDITIONS, KEY).add(KOALA)
    again = Results(path, CONDITIONS, KEY)
    assert ("koala", 5) in again
    assert ("koala", 10) not in again
    again.add(PIZZA)
    assert [Results(path, CONDITIONS, KEY)[noun, 5] for noun in ("koala", "pizza")] == [KOALA, PIZZA]


def test_what_was_measured_otherwise_does_not_count_and_stays(path: Path) -> None:
    Results(path, CONDITIONS, KEY).add(KOALA)
    other = Results(path, {**CONDITIONS, "weights": "4567"}, KEY)
    assert ("koala", 5) not in other
    other.add({**KOALA, "after": 0.1})
    assert Results(path, CONDITIONS, KEY)["koala", 5] == KOALA


def test_a_line_that_was_cut_off_is_measured_again(path: Path) -> None:
    results = Results(path, CONDITIONS, KEY)
    results.add(KOALA)
    results.add(PIZZA)
    path.write_text(path.read_text()[:-20])
    again = Results(path, CONDITIONS, KEY)
    assert ("pizza", 5) not in again
    again.add(PIZZA)
    assert [Results(path, CONDITIONS, KEY)[noun, 5] for noun in ("koala", "pizza")] == [KOALA, PIZZA]


def test_a_file_of_something_else_is_refused(path: Path) -> None:
    path.write_text('["koala", 5]\n')
    with pytest.raises(SystemExit, match=r"lessons\.jsonl, line 1: expected a result"):
        Results(path, CONDITIONS, KEY)


def test_without_a_file_results_are_kept_as_long_as_it_runs() -> None:
    results = Results(None, CONDITIONS, KEY)
    results.add(KOALA)
    assert results["koala", 5] == KOALA


def test_a_fine_tune_depends_on_weights_and_recipe() -> None:
    conditions = fine_tuning("ssp-sam-demo")
    [sha256] = conditions["weights"].values()
    assert len(sha256) == 64
    assert conditions != fine_tuning("ssp-sam-test")


def test_a_benchmark_replaces_its_own_section_alone() -> None:
    page = "# Performance\n\n## Summary\n\nby hand\n\n## Export\n\nold\n\n## Batching\n\n2.04\n"
    replaced = with_section(page, "Export", "## Export\n\nnew\n")
    assert replaced == page.replace("old", "new")
    assert with_section(page, "Forgetting", "## Forgetting\n\n0.01\n") == page + "\n## Forgetting\n\n0.01\n"
