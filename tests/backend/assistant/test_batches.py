"""Batch requests (tasks opened or selected in the Data Manager): one result per task, in order."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient

from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.state.redis_store import RedisStore
from tests.backend.editor import PATH, masks, predict_body, task
from tests.backend.parts import BASE

Json = dict[str, Any]


def batch(client: FlaskClient, tasks: list[Json], config: str = RECOMMENDED_CONFIG) -> list[Any]:
    response = client.post("/predict", json=predict_body(tasks, None, config))
    assert response.status_code == 200
    results: list[Any] = response.json["results"]
    return results


def test_a_batch_answers_every_task_in_order(client: FlaskClient) -> None:
    tasks = [task(number) for number in range(1, 6)]
    tasks[0]["data"]["phrase"] = "the red square"
    tasks[1]["data"]["phrases"] = ["the blue bar", "zebra"]
    tasks[2]["data"]["phrases"] = "the red square\nthe blue bar"
    tasks[3]["data"]["phrase"] = "the blue bar; the red square"

    results = batch(client, tasks)

    assert [list(masks(result)) for result in results] == [
        ["the red square"],
        ["the blue bar"],
        ["the red square", "the blue bar"],
        ["the blue bar", "the red square"],
        [],
    ]
    assert [result["model_version"] for result in results] == [BASE] * 5
    assert results[4]["result"] == [], "no phrase: an empty prediction, so that it is not asked again"
    for result in results:
        assert {part["from_name"].partition("-")[0] for part in result["result"]} <= {"mask", "phrase"}, (
            "one Submit saves it"
        )


@pytest.mark.parametrize("config", [RECOMMENDED_CONFIG, "<View>", "<View/>"])
def test_there_is_one_result_for_each_task_always(client: FlaskClient, config: str) -> None:
    """Label Studio drops all of a batch whose answers are not as many as its tasks."""
    pictures = [PATH, "/data/upload/2/nothing.png", None, 7, "data:image/png;base64,AAAA", PATH]
    phrases = ["the red square", "the red square", "a", "a", "a", "very " * 90]
    tasks = [task(number, one) for number, one in enumerate(pictures)]
    for one, phrase in zip(tasks, phrases, strict=True):
        one["data"]["phrase"] = phrase

    assert len(batch(client, [*tasks, {}, {"id": 9, "data": None}], config)) == len(tasks) + 2


def test_a_batch_stores_nothing_for_an_image_that_may_come_back(client: FlaskClient) -> None:
    tasks = [task(1, "/data/upload/2/nothing.png"), task(2), task(3, None)]
    for one in tasks:
        one["data"]["phrase"] = "the red square"

    gone, good, never = batch(client, tasks)

    assert gone == []
    assert list(masks(good)) == ["the red square"]
    assert never["result"] == []


def test_a_batch_without_a_brush_is_told_to_the_lead(client: FlaskClient, redis_store: RedisStore) -> None:
    one = task()
    one["data"]["phrase"] = "red"
    config = '<View><TextArea name="prompt" toName="image"/><Image name="image" value="$image"/></View>'

    (result,) = batch(client, [one], config)

    assert result["result"] == []
    assert "no <BrushLabels>" in redis_store.problems("2")[0].reason


def test_a_task_that_cannot_be_written_leaves_the_others_their_answers(
    client: FlaskClient, redis_store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [task(number) for number in range(1, 4)]
    for one in tasks:
        one["data"]["phrase"] = "the red square"
    note = RedisStore.note_served

    def note_served(store: RedisStore, proposed: Any, version: str, project: str, task_id: str) -> None:
        if task_id == "2":
            raise ValueError("no such mask")
        note(store, proposed, version, project, task_id)

    monkeypatch.setattr(RedisStore, "note_served", note_served)

    first, second, third = batch(client, tasks)

    assert second == []
    assert [list(masks(one)) for one in (first, third)] == [["the red square"]] * 2
    (problem,) = redis_store.problems("2")
    assert problem.task == "2"


@pytest.mark.parametrize(
    "extra_params", [{"phrase": "the blue bar"}, '{"phrases": ["the blue bar"]}', {"phrases": "the blue bar"}]
)
def test_a_batch_takes_the_projects_phrase(client: FlaskClient, extra_params: object) -> None:
    client.post("/setup", json={"project": "2.1795330931", "schema": "", "extra_params": extra_params})

    (result,) = batch(client, [task()])

    assert list(masks(result)) == ["the blue bar"]
