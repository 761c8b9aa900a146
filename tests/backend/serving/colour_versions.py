"""Versions of the predictor that looks for colours: each moves its masks by a number of rows."""

from __future__ import annotations

import numpy as np
import torch

from backend.serving.batch_queue import Caller
from backend.serving.engine import Engine
from sspsam import Referent
from sspsam.version_store.lines import line_of_project
from sspsam.version_store.store import VersionCard, VersionStore
from tests.backend.colours import picture

PRESET = "ssp-sam-test"
BASE = f"{PRESET}-base"
TOP = 5
"""First row of the red square in `picture`."""


def promote(versions: VersionStore, project: int, shift: int) -> str:
    """Publishes and promotes a colour predictor's version in a project's line."""
    return promote_state(versions, project, {"shift": torch.tensor(shift)})


def promote_state(versions: VersionStore, project: int, state: dict[str, torch.Tensor]) -> str:
    line = line_of_project(project)
    version = versions.publish(state, VersionCard(line=line), {}).version_id
    versions.promote(version)
    return version


def ask(engine: Engine, project: int | str, phrase: str = "red") -> tuple[str, Referent]:
    answer = engine.predict("picture", picture, [phrase], Caller(f"of {project}", project=str(project)))
    [referent] = answer.referents
    assert isinstance(referent, Referent)
    return answer.version, referent


def shift_of(engine: Engine, project: int | str) -> tuple[str, int]:
    """The version that answers, and by how many rows its mask is moved."""
    version, referent = ask(engine, project)
    return version, int(np.flatnonzero(referent.mask.any(axis=1))[0]) - TOP
