"""Masks of improbable targets, for projects that want them instead of "nothing found"."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from flask.testing import FlaskClient

from sspsam import Referent
from tests.backend.colours import ColourPredictor
from tests.backend.editor import ask, colour, masks, predict_body, prompt, task, texts

PRESENCE, THRESHOLD, CERTAINTY = 0.4, 0.6, 0.31


class Doubtful(ColourPredictor):
    """Its presence head gives everything red the same probability."""

    def finish(
        self, decoded: Referent, min_speck: float = 0.0, min_presence: float | None = None
    ) -> Referent:
        if "red" not in decoded.phrase:
            return decoded
        if (THRESHOLD if min_presence is None else min_presence) > PRESENCE:
            return replace(decoded, mask=np.zeros_like(decoded.mask), no_target=True)
        return replace(decoded, is_unsure=True, expected_iou=CERTAINTY)


@pytest.fixture
def predictor() -> Doubtful:
    return Doubtful()


def want(client: FlaskClient, unsure: object) -> None:
    client.post("/setup", json={"project": "2.17", "schema": "", "extra_params": {"unsure": unsure}})


@pytest.mark.parametrize("unsure", [None, 0.5, 1, -0.1, 2, 10**400, True, "0.1", [], "x" * 300])
def test_by_default_nothing_is_found(client: FlaskClient, unsure: object) -> None:
    """Nor by values that are above the probability, or none."""
    if unsure is not None:
        want(client, unsure)
    answer = ask(client, prompt("the red square"))
    assert masks(answer) == {}
    assert "Nothing found for “the red square”" in texts(answer, "status")[0]


@pytest.mark.parametrize("unsure", [0, 0.2, PRESENCE])
def test_a_project_may_want_unsure_masks(client: FlaskClient, unsure: float) -> None:
    want(client, unsure)
    answer = ask(client, prompt("the red square; the blue bar"))
    np.testing.assert_array_equal(masks(answer)["the red square"], colour("red"))
    assert texts(answer, "status") == ["unsure: “the red square” 0.31."]
    assert texts(answer, "prompt") == []


def test_predictions_hold_sure_masks_only(client: FlaskClient) -> None:
    """One Submit would save them, and they may be unseen."""
    want(client, 0.2)
    one = task(phrases=["the red square", "the blue bar"])
    one["data"]["phrases"] = ["the red square", "the blue bar"]
    [prediction] = client.post("/predict", json=predict_body([one], None)).json["results"]
    assert list(masks(prediction)) == ["the blue bar"]
