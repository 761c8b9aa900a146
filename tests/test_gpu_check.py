"""`make gpu-check`: the dry run executes every step, and a step that fails costs only its own table."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.common import gpu_steps
from benchmarks.common.gpu_steps import STEPS, Sizes, Table


@pytest.mark.slow
def test_the_dry_run_executes_every_step() -> None:
    text = gpu_check.check(list(STEPS), dry_run=True)
    assert "**Failed**" not in text
    assert text.startswith("## On a GPU\n")
    assert "Dry run on a CPU: figures mean nothing" in text
    for name in STEPS:
        assert f"### {name}\n" in text
    assert "| the paper, its own GPU | 26.68 |" in text


def test_a_step_that_fails_costs_only_its_own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(sizes: Sizes) -> Table:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    def works(sizes: Sizes) -> Table:
        """It works."""
        return Table(["device"], [[sizes.device]])

    monkeypatch.setattr(gpu_check, "STEPS", {"Fails": fails, "Works": works})
    text = gpu_check.check(["Fails", "Works"], dry_run=True)
    assert "### Fails\n\n**Failed**: RuntimeError: CUDA error: an illegal memory access" in text
    assert "### Works\n\nIt works.\n\n| device |\n| --- |\n| cpu |" in text


def test_the_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "BUDGET_S", 0.0)
    assert gpu_check.check(["Soak"], dry_run=True).endswith("### Soak\n\n**Failed**: no time left\n")


@pytest.mark.slow
def test_a_step_has_a_process_of_its_own() -> None:
    assert gpu_check.run_apart("Phrase path", 0.01) == "ended after 0 s"
    found = gpu_check.run_apart("Phrase path", 120)
    if torch.cuda.is_available():
        assert isinstance(found, Table)
    else:
        assert isinstance(found, str)
        assert "CUDA" in found or "NVIDIA" in found


def test_a_deviation_from_the_golden_files_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    (row, _) = gpu_steps.golden_files(gpu_steps.DRY).rows
    assert row[-1] == "met"
    monkeypatch.setattr(gpu_steps, "TOLERANCE", -1.0)
    (row, _) = gpu_steps.golden_files(gpu_steps.DRY).rows
    assert row[-1] == "missed"
