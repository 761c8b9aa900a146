"""Matrix products are computed by what was faster when this machine was measured, with a file as memory."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

import pytest
import torch

from sspsam.runtime import product_speeds
from sspsam.runtime.onednn import has_onednn, use_onednn_matmul
from sspsam.runtime.product_speeds import FILE, LEAST_GAIN, chooser, measure, use_faster_products

pytestmark = pytest.mark.skipif(not has_onednn(), reason="other processors multiply as before")
SMALL = ((64, 128, 256), (128, 256, 128))


def operators() -> set[str]:
    left, right = torch.rand(300, 400), torch.rand(400, 500)
    with torch.profiler.profile() as profile:
        _ = left @ right
    return {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("faster", [True, False])
def test_a_product_goes_to_whichever_is_chosen(faster: bool) -> None:
    asked: list[tuple[int, int, int]] = []

    def choose(rows: int, inputs: int, outputs: int) -> bool:
        asked.append((rows, inputs, outputs))
        return faster

    assert use_onednn_matmul(choose)
    assert any("mkldnn" in name for name in operators()) is faster
    assert asked == [(300, 400, 500)]


@pytest.mark.parametrize(
    ("shape", "faster"),
    [((64, 128, 256), True), ((50, 100, 300), True), ((4096, 1280, 5120), False), ((3000, 900, 4000), False)],
)
def test_products_are_like_the_nearest_that_was_measured(shape: tuple[int, int, int], faster: bool) -> None:
    speeds = {(64, 128, 256): LEAST_GAIN, (4096, 1280, 5120): LEAST_GAIN - 0.01}
    assert chooser(speeds)(*shape) is faster


def test_both_ways_are_measured() -> None:
    speeds = measure(SMALL, rounds=1)
    assert speeds.keys() == set(SMALL)
    assert all(speed > 0 for speed in speeds.values())


@pytest.mark.parametrize(
    ("processor", "used"),
    [("AuthenticAMD avx2 avx512f", True), ("AuthenticAMD avx2", False), ("GenuineIntel avx512f", False)],
)
def test_a_busy_machine_delays_no_start(
    processor: str, used: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product_speeds, "measure", partial(measure, SMALL, 1, 0.0))
    monkeypatch.setattr(product_speeds, "_processor", lambda: processor)
    assert use_faster_products(tmp_path) is used
    assert not (tmp_path / FILE).exists(), "the next start measures"


def test_a_machine_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    measured: list[int] = []

    def once() -> dict[tuple[int, int, int], float]:
        measured.append(1)
        return {SMALL[0]: 1.5, SMALL[1]: 0.5}

    monkeypatch.setattr(product_speeds, "measure", once)
    monkeypatch.setattr(product_speeds, "SHAPES", SMALL)
    caplog.set_level(logging.INFO)
    for _ in range(2):
        assert use_faster_products(tmp_path / "models")
    assert len(measured) == 1
    assert "1 of 2 shapes" in caplog.text
    assert use_faster_products()
    assert len(measured) == 2, "a process without a folder remembers nothing"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"another processor": []}', "damaged"])
def test_what_is_not_of_this_machine_is_measured_and_kept(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product_speeds, "measure", lambda: {SMALL[0]: 0.9})
    monkeypatch.setattr(product_speeds, "SHAPES", SMALL[:1])
    (tmp_path / FILE).write_text(content)
    assert not use_faster_products(tmp_path), "no shape gains"
    kept = json.loads((tmp_path / FILE).read_text())
    assert [*SMALL[0], 0.9] in next(rows for name, rows in kept.items() if name != "another processor")
    assert ("another processor" in kept) is ("another" in content)


def test_a_folder_that_cannot_be_written_costs_only_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(product_speeds, "measure", lambda: {SMALL[0]: 2.0})
    monkeypatch.setattr(product_speeds, "SHAPES", SMALL[:1])
    (tmp_path / "file").write_text("")
    assert use_faster_products(tmp_path / "file")
    assert "measured again" in caplog.text
