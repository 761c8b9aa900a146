"""`--version current`: the version that serves a line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import typer

from sspsam import Predictor, VersionStore
from sspsam.cli.commands import open_predictor
from sspsam.version_store.lines import line_of_project
from sspsam.version_store.store import VersionCard, VersionStateError

PRESET = "ssp-sam-test"
NAME = "fusion.weight"


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    return VersionStore(tmp_path, PRESET)


def learn(store: VersionStore, project: int, value: float) -> None:
    state = Predictor.from_preset(PRESET, "cpu").trainable_state()
    state[NAME] = torch.full_like(state[NAME], value)
    line = line_of_project(project)
    store.promote(store.publish(state, VersionCard(line=line), {}).version_id)


def opened(tmp_path: Path, version: str) -> float:
    state = open_predictor(PRESET, "cpu", version, tmp_path).trainable_state()
    return float(state[NAME].flatten()[0])


def test_the_only_line_need_not_be_named(store: VersionStore, tmp_path: Path) -> None:
    base = opened(tmp_path, "current")
    learn(store, 7, 0.5)
    assert opened(tmp_path, "current") == opened(tmp_path, "current:7") == 0.5
    assert opened(tmp_path, "current:9") == base


def test_of_several_lines_one_must_be_named(store: VersionStore, tmp_path: Path) -> None:
    learn(store, 7, 0.5)
    learn(store, 9, 0.25)
    assert (opened(tmp_path, "current:7"), opened(tmp_path, "current:9")) == (0.5, 0.25)
    with pytest.raises(VersionStateError, match="project-7, project-9"):
        opened(tmp_path, "current")
    with pytest.raises(typer.BadParameter, match="expected current:7"):
        opened(tmp_path, "current:seven")
