"""The routes as Label Studio uses them, with a real Redis and pictures over HTTP."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis
from werkzeug.wrappers import Response

from backend.app import create_app
from backend.labelstudio import notes
from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.memory import Memory, Served
from backend.request_ids import add_request_id
from backend.service import Service
from backend.settings import Settings
from sspsam.masks import brush_rle_to_mask, coco_rle_to_mask
from tests.backend.colours import ColourPredictor
from tests.backend.editor import (
    CONFIG,
    PATH,
    ask,
    colour,
    masks,
    predict_body,
    prompt,
    status,
    task,
    texts,
)
from tests.backend.waiting import wait_until
from tests.backend.web import Web

Json = dict[str, Any]
BASE = "ssp-sam-test-base"
NO_STATUS = RECOMMENDED_CONFIG.replace('name="status"', 'name="remark"')


def service_of(app: Flask) -> Service:
    service: Service = app.extensions["sspsam"]
    return service


# Interactive phrases


def test_a_phrase_gives_its_mask_and_leaves_the_prompt(client: FlaskClient) -> None:
    prediction = ask(client, prompt("the red square"))

    found = masks(prediction)
    assert list(found) == ["the red square"]
    np.testing.assert_array_equal(found["the red square"], colour("red"))
    assert [result["from_name"] for result in prediction["result"]] == ["mask", "phrase", "prompt"]
    assert prediction["result"][2]["id"] == "Wp6j8HRcD1"
    assert texts(prediction, "prompt") == []
    assert texts(prediction, "status") is None
    assert prediction["model_version"] == BASE


def test_a_phrase_that_fits_nothing_stays_and_says_so(client: FlaskClient) -> None:
    prediction = ask(client, prompt("the green bird"))

    assert masks(prediction) == {}
    assert texts(prediction, "prompt") == ["the green bird"], "plain: saved like this, it is a label"
    assert texts(prediction, "status") == ["Nothing here fits “the green bird”."]


def test_without_a_status_line_the_prompt_says_so(client: FlaskClient) -> None:
    prediction = ask(client, prompt("the green bird"), config=NO_STATUS)

    (entry,) = texts(prediction, "prompt") or []
    assert entry == notes.with_no_match("the green bird")
    saved = read_annotation({"result": [prompt(entry)]}, CONFIG)
    assert saved.no_target_phrases == ("the green bird",)
    after = ask(client, prompt(entry, "the red square"), config=NO_STATUS)
    assert texts(after, "prompt") == [entry], "and goes on saying so"


def test_only_the_new_phrase_is_looked_for(app: Flask, settings: Settings, redis_server: Redis) -> None:
    predictor = ColourPredictor()
    app = create_app(settings, redis_server, predictor)
    service_of(app).engine.start()
    client = app.test_client()
    ask(client, prompt("a green bird"))
    predictor.asked.clear()

    prediction = ask(client, prompt("a green bird", "the red square"))

    assert predictor.asked == ["the red square"]
    assert list(masks(prediction)) == ["the red square"]
    assert texts(prediction, "prompt") == ["a green bird"]
    service_of(app).engine.stop()


def test_a_saved_no_target_phrase_is_not_looked_for_again(client: FlaskClient) -> None:
    """Opened again after Redis has forgotten: the saved annotation says that nothing fits, red or not."""
    saved = task(annotations=[{"id": 9, "result": [prompt("the red ghost")]}])

    prediction = ask(client, prompt("the red ghost", "the blue bar"), one=saved)

    assert list(masks(prediction)) == ["the blue bar"]
    assert texts(prediction, "prompt") == ["the red ghost"]


def test_an_earlier_phrase_whose_answer_was_lost_is_answered_too(client: FlaskClient) -> None:
    prediction = ask(client, prompt("the red square", "the blue bar"))

    found = masks(prediction)
    assert list(found) == ["the red square", "the blue bar"]
    assert len({result["id"] for result in prediction["result"] if result["from_name"] == "mask"}) == 2


def test_the_newest_phrase_is_looked_for_again_when_typed_again(client: FlaskClient) -> None:
    ask(client, prompt("a green bird"))

    prediction = ask(client, prompt("a green bird", "A green  bird"))

    assert texts(prediction, "prompt") == ["a green bird"]
    assert texts(prediction, "status") == ["Nothing here fits “a green bird”."]


def test_the_same_phrase_twice_gives_one_mask(client: FlaskClient) -> None:
    once = ask(client, prompt("the red square"))
    twice = ask(client, prompt("the red square", "The red square "))

    ids = [
        [result["id"] for result in prediction["result"] if result["from_name"] == "mask"]
        for prediction in (once, twice)
    ]
    assert ids[0] == ids[1], "the region is replaced, not doubled"
    assert len(ids[0]) == 1


def test_several_phrases_in_one_entry(client: FlaskClient) -> None:
    prediction = ask(client, prompt("the red square; a zebra;the blue bar; The Red square"))

    assert list(masks(prediction)) == ["the red square", "the blue bar"]
    assert texts(prediction, "prompt") == ["a zebra"]
    ids = [result["id"] for result in prediction["result"] if result["from_name"] == "mask"]
    assert ids == [
        result["id"]
        for phrase in ("the red square", "the blue bar")
        for result in ask(client, prompt(phrase))["result"]
        if result["from_name"] == "mask"
    ], "the same regions as when entered one by one"


def test_all_phrases_of_the_last_entry_are_looked_for_again(client: FlaskClient) -> None:
    ask(client, prompt("a zebra; a ghost"))

    prediction = ask(client, prompt("a zebra", "a ghost", "a zebra; the red square"))

    assert list(masks(prediction)) == ["the red square"]
    assert texts(prediction, "prompt") == ["a ghost", "a zebra"]
    assert texts(prediction, "status") == ["Nothing here fits “a zebra”."]


def test_several_phrases_that_were_never_sent_are_saved_as_several(client: FlaskClient) -> None:
    """Typed with Auto-Annotation off."""
    saved = read_annotation({"result": [prompt("a zebra; a ghost")]}, CONFIG)

    assert saved.no_target_phrases == ("a zebra", "a ghost")


@pytest.mark.parametrize("context", [None, {"result": []}, {}])
def test_drafts_and_saved_phrases_are_not_asked(client: FlaskClient, context: Json | None) -> None:
    drafts = [{"result": [prompt("the red square")], "user": "a@example.com"}]
    one = task(drafts=drafts, annotations=[{"id": 9, "result": [prompt("the blue bar")]}])

    response = client.post("/predict", json=predict_body([one], context))

    (prediction,) = response.json["results"]  # type: ignore[index]
    assert prediction["result"] == []


def test_what_the_status_said_is_taken_back(client: FlaskClient) -> None:
    prediction = ask(client, prompt("the red square"), status("Nothing here fits “zebra”."))

    assert texts(prediction, "status") == []
    assert prediction["result"][-1]["id"] == "status0001"


@pytest.mark.parametrize(
    "results",
    [
        [],
        [prompt()],
        [{**prompt("a comment"), "from_name": "comment"}],
        [{"from_name": "click", "type": "keypointlabels", "value": {"x": 1}, "id": "a"}],
        [{"from_name": "knee", "type": "keypointlabels", "value": {"x": 1, "y": 1}, "id": "a"}],
        [{"from_name": "prompt"}],
        [None, 7, "text"],
    ],
    ids=[
        "after submit",
        "empty prompt",
        "comment",
        "half a click",
        "another tag's click",
        "no value",
        "junk",
    ],
)
def test_calls_without_a_phrase_get_nothing(client: FlaskClient, results: list[Any]) -> None:
    assert ask(client, *results) == {"result": []}


@pytest.mark.parametrize("text", ["  ", ""])
def test_an_empty_phrase_is_told(client: FlaskClient, text: str) -> None:
    prediction = ask(client, prompt(text))

    (said,) = texts(prediction, "status") or []
    assert said.startswith("The phrase is empty")
    after = ask(client, prompt(*(texts(prediction, "prompt") or []), "the red square"), status(said))
    assert list(masks(after)) == ["the red square"]
    assert texts(after, "prompt") == []
    assert texts(after, "status") == []


def test_a_phrase_of_80_words_is_told_and_the_others_are_answered(client: FlaskClient) -> None:
    long = "very " * 79 + "red"

    prediction = ask(client, prompt(long, "the blue bar"))

    assert list(masks(prediction)) == ["the blue bar"]
    (said,) = texts(prediction, "status") or []
    assert "too long" in said
    assert len(said) < 200
    (entry,) = texts(prediction, "prompt") or []
    assert notes.plain_phrase(entry) == long


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("/data/upload/2/nothing.png", "answers 404"),
        ("http://127.0.0.1:9/a.png", "IMAGE_HOSTS"),
        ("data:image/png;base64,AAAA", "not an image"),
        ("ftp://example.com/a.png", "only http"),
        (None, "has no image"),
    ],
)
def test_an_image_that_cannot_be_had_is_told_and_loses_nothing(
    client: FlaskClient, image: object, reason: str
) -> None:
    prediction = ask(client, prompt("the red square"), one=task(image=image))

    (said,) = texts(prediction, "status") or []
    assert "“the red square” was not looked for" in said
    assert reason in said
    (entry,) = texts(prediction, "prompt") or []
    assert notes.has_failed(entry)
    assert read_annotation({"result": [prompt(entry)]}, CONFIG).no_target_phrases == ()
    mended = ask(client, prompt(entry, "the blue bar"))
    assert list(masks(mended)) == ["the red square", "the blue bar"]
    assert texts(mended, "prompt") == []


def test_an_unreadable_image_is_told(client: FlaskClient, label_studio: Web) -> None:
    label_studio.answers[PATH] = Response(b"no picture")

    (said,) = texts(ask(client, prompt("the red square")), "status") or []

    assert "not an image" in said


def test_a_refused_key_is_told(client: FlaskClient, label_studio: Web) -> None:
    label_studio.answers[PATH] = Response("", 401)

    (said,) = texts(ask(client, prompt("the red square")), "status") or []

    assert "LABEL_STUDIO_API_KEY" in said


def test_a_config_without_a_brush_is_told_in_the_prompt(client: FlaskClient) -> None:
    config = '<View><TextArea name="prompt" toName="image"/><Image name="image" value="$image"/></View>'

    (entry,) = texts(ask(client, prompt("the red square"), config=config), "prompt") or []

    assert notes.has_failed(entry)
    assert "no <BrushLabels>" in entry


def test_a_config_that_cannot_be_read_gets_nothing(client: FlaskClient) -> None:
    assert ask(client, prompt("the red square"), config="<View>") == {"result": []}


def test_a_broken_model_is_told(settings: Settings, redis_server: Redis) -> None:
    class Broken(ColourPredictor):
        def decode(self, questions: Any) -> Any:
            if questions[0].phrase != "warm up":
                raise RuntimeError("CUDA out of memory at 0x7f")
            return super().decode(questions)

    app = create_app(settings, redis_server, Broken())
    service_of(app).engine.start()

    headers = {"X-Request-Id": "from-a-proxy"}
    body = predict_body([task()], {"result": [prompt("the red square")]})
    response = app.test_client().post("/predict", json=body, headers=headers)

    (prediction,) = response.json["results"]  # type: ignore[index]
    (said,) = texts(prediction, "status") or []
    assert "its log says more under from-a-proxy" in said
    assert response.headers["X-Request-Id"] == "from-a-proxy"
    assert "CUDA" not in json.dumps(prediction)
    service_of(app).engine.stop()


def test_a_model_that_could_not_be_loaded_is_told(settings: Settings, redis_server: Redis) -> None:
    class Missing(ColourPredictor):
        def trainable_state(self) -> dict[str, Any]:
            raise FileNotFoundError("weights.safetensors")

    app = create_app(settings, redis_server, Missing())
    service_of(app).engine.start()

    (said,) = texts(ask(app.test_client(), prompt("the red square")), "status") or []

    assert "could not be loaded" in said
    service_of(app).engine.stop()


def test_labels_of_the_same_name_are_used(client: FlaskClient) -> None:
    config = RECOMMENDED_CONFIG.replace('<Label value="object"', '<Label value="sky"/><Label value="Red"')

    brush = ask(client, prompt("red"), config=config)["result"][0]

    assert brush["value"]["brushlabels"] == ["Red"]


def test_without_redis_phrases_are_answered(settings: Settings) -> None:
    app = create_app(
        settings.model_copy(update={"redis_url": "unix:///nonexistent.sock"}), predictor=ColourPredictor()
    )
    service_of(app).engine.start()
    client = app.test_client()

    prediction = ask(client, prompt("the red square", "zebra"))

    assert list(masks(prediction)) == ["the red square"]
    assert texts(prediction, "prompt") == ["zebra"]
    assert client.get("/health").status_code == 200
    assert client.post("/setup", json={"project": "2.1"}).json == {"model_version": BASE}
    assert "Redis does not answer" in client.get("/").text
    service_of(app).engine.stop()


def test_served_masks_are_kept_for_the_worker(
    client: FlaskClient, memory: Memory, redis_server: Redis
) -> None:
    brush = ask(client, prompt("the red square", "zebra"))["result"][0]

    served = memory.served(brush["id"])

    assert isinstance(served, Served)
    assert (served.version, served.phrase) == (BASE, "the red square")
    np.testing.assert_array_equal(coco_rle_to_mask(served.rle), colour("red"))
    assert 0 < redis_server.ttl(f"sspsam:served:{brush['id']}") <= 30 * 24 * 3600
    assert memory.served("another") is None


# Batches


def batch(client: FlaskClient, tasks: list[Json], config: str = RECOMMENDED_CONFIG) -> list[Any]:
    response = client.post("/predict", json=predict_body(tasks, None, config))
    assert response.status_code == 200
    results: list[Any] = response.json["results"]  # type: ignore[index]
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
    assert texts(results[1], "prompt") == ["zebra"]
    assert texts(results[0], "prompt") is None


def test_a_batch_stores_nothing_for_an_image_that_may_come_back(client: FlaskClient) -> None:
    tasks = [task(1, "/data/upload/2/nothing.png"), task(2), task(3, None)]
    for one in tasks:
        one["data"]["phrase"] = "the red square"

    gone, good, never = batch(client, tasks)

    assert gone == []
    assert list(masks(good)) == ["the red square"]
    assert "has no image" in str(texts(never, "status"))


def test_a_batch_without_a_brush_is_told(client: FlaskClient) -> None:
    one = task()
    one["data"]["phrase"] = "red"
    config = '<View><TextArea name="prompt" toName="image"/><Image name="image" value="$image"/></View>'

    (result,) = batch(client, [one], config)

    assert "no <BrushLabels>" in str(texts(result, "prompt"))


@pytest.mark.parametrize(
    "extra_params", [{"phrase": "the blue bar"}, '{"phrases": ["the blue bar"]}', {"phrases": "the blue bar"}]
)
def test_a_batch_takes_the_projects_phrase(client: FlaskClient, extra_params: object) -> None:
    client.post("/setup", json={"project": "2.1795330931", "schema": "", "extra_params": extra_params})

    (result,) = batch(client, [task()])

    assert list(masks(result)) == ["the blue bar"]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"tasks": 7}', b'{"tasks": [7]}', b'{"tasks": [{"data": 7}]}']
)
def test_what_is_no_predict_request_is_refused(client: FlaskClient, body: bytes) -> None:
    response = client.post("/predict", data=body, content_type="application/json")

    assert response.status_code == 400
    assert "must be an object" in response.json["error"] or "needs a list" in response.json["error"]  # type: ignore[index]


# Health, setup, versions, metrics


def test_health_and_setup_do_not_wait_for_the_model(settings: Settings, redis_server: Redis) -> None:
    app = create_app(settings, redis_server, ColourPredictor())
    client = app.test_client()

    health = client.get("/health")
    setup = client.post(
        "/setup",
        json={
            "project": "1.1795330868",
            "schema": RECOMMENDED_CONFIG,
            "hostname": "http://evil.example",
            "access_token": "s3cret",
            "extra_params": "",
        },
    )

    assert health.json == {
        "status": "UP",
        "model_class": "SSP-SAM",
        "model_version": BASE,
        "model_state": "loading",
    }
    assert setup.json == {"model_version": BASE}
    assert b"s3cret" not in b"".join(redis_server.hvals("sspsam:projects"))


def test_what_a_form_lacks_is_logged_once(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    bare = {"project": "7.1", "schema": '<View><Image name="image" value="$image"/></View>'}
    caplog.set_level("INFO")

    for _ in range(3):  # Label Studio calls again and again
        assert client.post("/setup", json=bare).status_code == 200
    client.post("/setup", json={"project": "8.1", "schema": "<View>"})

    required = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(required) == 3
    assert required[0].startswith("project 7: there is no <TextArea> for the whole image")
    assert "Add <BrushLabels" in required[1]
    assert required[2].startswith("project 8: labeling config is not XML")


def test_versions(client: FlaskClient) -> None:
    assert client.get("/versions").json == {"versions": [BASE]}


def test_metrics_count_what_was_asked(client: FlaskClient) -> None:
    ask(client, prompt("the red square", "zebra", "very " * 90))

    text = client.get("/metrics").text

    for line in (
        'sspsam_phrases_total{outcome="mask"} 1.0',
        'sspsam_phrases_total{outcome="no_match"} 1.0',
        'sspsam_phrases_total{outcome="failed"} 1.0',
        'sspsam_requests_total{endpoint="predict",status="200"} 1.0',
        f'sspsam_model_info{{state="ready",version="{BASE}"}} 1.0',
        "sspsam_embedding_cache_images 1.0",
    ):
        assert line in text


@pytest.mark.parametrize("given", [None, "a b", "x" * 65, "\u00e9"])
def test_answers_carry_an_id_that_the_log_has(
    client: FlaskClient, caplog: pytest.LogCaptureFixture, given: str | None
) -> None:
    handler = caplog.handler
    handler.addFilter(add_request_id)
    headers = {} if given is None else {"X-Request-Id": given}

    response = client.post("/predict", data=b"[]", headers=headers)

    number = response.headers["X-Request-Id"]
    assert number != given
    assert re.fullmatch(r"[0-9a-f]{12}", number)
    assert response.json["request_id"] == number  # type: ignore[index]
    (line,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert line.request_id == number  # type: ignore[attr-defined]
    assert client.get("/health").headers["X-Request-Id"] != number
    handler.removeFilter(add_request_id)


def test_health_setup_and_webhook_load_nothing_and_ask_nobody(
    settings: Settings, redis_server: Redis, label_studio: Web
) -> None:
    """How quick they are, benchmarks/protocol.py measures."""
    app = create_app(settings, redis_server, ColourPredictor())
    client = app.test_client()
    event = {"action": "ANNOTATION_CREATED", "annotation": {"id": 1, "task": 2}, "project": {"id": 5}}

    assert client.get("/health").json["model_state"] == "loading"  # type: ignore[index]
    assert client.post("/setup", json={"project": "5.1", "schema": RECOMMENDED_CONFIG}).status_code == 200
    assert client.post("/webhook", json=event).status_code == 201

    assert app.extensions["sspsam"].engine.status().state == "loading"
    assert label_studio.asked == []


def test_unknown_pages_are_json(client: FlaskClient) -> None:
    response = client.get("/nothing")

    assert response.status_code == 404
    assert response.json


def test_a_swap_is_counted_and_shown(app: Flask, client: FlaskClient) -> None:
    import torch

    from sspsam.versions import VersionCard

    store = service_of(app).versions
    wait_until(lambda: service_of(app).engine.status().state == "ready", "the model is loaded")
    version = store.publish({"shift": torch.tensor(2)}, VersionCard(), {}).version_id
    store.promote(version)
    wait_until(lambda: service_of(app).engine.version == version, "the version serves")

    assert ask(client, prompt("red"))["model_version"] == version
    assert client.get("/versions").json == {"versions": [version, BASE]}
    assert client.post("/setup", json={"project": "1.1"}).json == {"model_version": version}
    assert "sspsam_version_swaps_total 1.0" in client.get("/metrics").text


def test_brush_rle_of_an_answer_has_the_size_of_the_picture(client: FlaskClient) -> None:
    brush = ask(client, prompt("the blue bar"))["result"][0]

    assert (brush["original_height"], brush["original_width"]) == (40, 60)
    np.testing.assert_array_equal(brush_rle_to_mask(brush["value"]["rle"], 40, 60), colour("blue"))
