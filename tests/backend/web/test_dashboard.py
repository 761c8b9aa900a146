"""The start page shows the serving model, the versions, and missing parts of projects."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis
from werkzeug.wrappers import Response

from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.settings import Settings
from backend.state.redis_store import PROBLEMS_KEPT, PROBLEMS_S
from backend.web.dashboard import short_time
from backend.web.fine_tunes import CURVE_POINTS, CURVE_WH, PICTURES
from finetune.training.loop import LOG_NAME
from sspsam.version_store.store import VersionCard, VersionStore
from tests.backend.editor import ask, click, prompt, task
from tests.backend.parts import service_of
from tests.backend.web_server import Web
from tests.waiting import wait_until

CARD = VersionCard(
    metrics={
        "incumbent": {"mIoU": 0.512, "gIoU": 0.5},
        "candidate": {"mIoU": 0.604, "gIoU": None},
        "held_out_samples": 14,
    }
)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    wait_until(lambda: service_of(app).engine.status().state == "ready", "the model is loaded")
    return app.test_client()


def publish(versions: VersionStore, card: VersionCard, shift: int) -> str:
    return versions.publish({"shift": torch.tensor(shift)}, card, {}).version_id


def test_at_first_it_says_how_to_connect(client: FlaskClient) -> None:
    page = client.get("/").text

    assert "ssp-sam-test-base" in page
    assert "Base weights of the preset" in page
    assert "sspsam connect --project ID" in page
    assert "&lt;BrushLabels" in page, "a labeling config to copy"


def test_versions_come_with_the_figure_that_decided(app: Flask, client: FlaskClient) -> None:
    versions = service_of(app).versions
    better = publish(versions, CARD, 1)
    versions.promote(better, "mIoU 0.512 -> 0.604: better")
    worse = publish(versions, replace(CARD, metrics={**CARD.metrics, "metric": "gIoU"}), 2)
    versions.reject(worse, "not <better>")
    wait_until(lambda: service_of(app).engine.version == better, "the better one serves")

    page = client.get("/").text

    assert f'<strong id="serving">{better}</strong>' in page
    assert "mIoU 51.2 % &rarr; 60.4 %" in page
    assert "14 held-out labels" in page
    assert "mIoU 0.512 -&gt; 0.604: better" in page
    assert "not &lt;better&gt;" in page
    assert client.get("/versions").json == {"versions": [better, "ssp-sam-test-base"]}, (
        "none that was rejected"
    )


@pytest.fixture
def tuned(app: Flask) -> str:
    """A version as the worker leaves it."""
    log = "".join(
        json.dumps({"step": step, "lr": 1e-4, "total": 8.0 - step / 100}) + "\n" for step in range(400)
    )
    card = replace(
        CARD,
        parent="ssp-sam-test-base",
        data={"project": 7, "trained_on": 23},
        config={"steps": 400, "batch_size": 12, "learning_rate": 3e-4},
    )
    picture = Path(app.root_path).parent / "docs/images/annotate-type.jpg"
    listed = [
        {"file": "before-after-1.jpg", "phrase": "a <b>cup</b>", "before": 0.414, "after": 0.838},
        {"file": "elsewhere.jpg", "phrase": "gone", "before": 0, "after": 1},
    ]
    files = {
        LOG_NAME: log,
        "report.html": "<p>its report</p>",
        PICTURES: json.dumps(listed),
        "before-after-1.jpg": picture,
    }
    store = service_of(app).versions
    return store.publish({"shift": torch.tensor(1)}, card, files).version_id


def test_fine_tunes_come_with_curve_and_pictures(app: Flask, client: FlaskClient, tuned: str) -> None:
    bare = publish(service_of(app).versions, replace(CARD, parent=tuned), 2)

    page = " ".join(client.get("/").text.split())

    assert page.count('class="fine-tune"') == 2
    assert page.index(f"<h3>{bare}") < page.index(f"<h3>{tuned}"), "the newest first"
    assert (
        "Fine-tuned from ssp-sam-test-base on 23 labels of project 7, "
        "400 steps of 12 samples at a learning rate of 0.0003." in page
    )
    assert "Loss 8 &rarr; 4.01 in 399 steps" in page
    (points,) = re.findall(r'<polyline points="([^"]+)"', page)
    places = [tuple(map(float, pair.split(","))) for pair in points.split()]
    assert places[0] == (0, 0)
    assert places[-1] == CURVE_WH
    assert len(places) <= CURVE_POINTS + 1
    assert 'a &lt;b&gt;cup&lt;/b&gt; <span class="quiet">IoU 41 % &rarr; 84 %</span>' in page
    assert "elsewhere.jpg" not in page, "it is no file of the version"
    for name, start in (("before-after-1.jpg", b"\xff\xd8"), ("report.html", b"<p>its")):
        assert f"reports/{tuned}/{name}" in page
        response = client.get(f"/reports/{tuned}/{name}")
        assert response.status_code == 200
        assert response.data.startswith(start)
        assert "sandbox" in response.headers["Content-Security-Policy"]


@pytest.mark.parametrize("name", ["weights.safetensors", "card.json", "..%2fcurrent.json", "nothing.html"])
def test_weights_and_strange_files_are_not_given_out(client: FlaskClient, tuned: str, name: str) -> None:
    response = client.get(f"/reports/{tuned}/{name}")

    assert response.status_code == 404
    assert client.get("/reports/ssp-sam-test-base/report.html").status_code == 404
    assert client.get("/reports/..%2f..%2fetc/passwd.md").status_code == 404


def test_how_the_serving_version_was_trained(app: Flask, client: FlaskClient, tuned: str) -> None:
    assert 'id="training"' not in client.get("/").text, "the weights that ship"
    service_of(app).versions.promote(tuned)
    wait_until(lambda: service_of(app).engine.version == tuned, "it serves")

    assert (
        '<p class="quiet" id="training">Fine-tuned from ssp-sam-test-base on 23 labels'
        in client.get("/").text
    )


def test_a_damaged_log_shows_the_curve_up_to_there(app: Flask, client: FlaskClient) -> None:
    lines = ['{"step": 1, "total": 3}', '{"step": 2, "total": 2}', '{"step": 3, "total": NaN}', "{", "[]"]
    files = {LOG_NAME: "\n".join(lines)}
    service_of(app).versions.publish({"shift": torch.tensor(1)}, CARD, files)

    assert "Loss 3 &rarr; 2 in 2 steps" in client.get("/").text


@pytest.mark.parametrize(
    "listed", ["{", "[]", "7", '["a"]', '[{"file": "report.html"}]', '[{"file": 1, "phrase": 2}]']
)
def test_a_damaged_list_of_pictures_shows_none(app: Flask, client: FlaskClient, listed: str) -> None:
    files = {PICTURES: listed, "report.html": "<p>its report</p>"}
    service_of(app).versions.publish({"shift": torch.tensor(1)}, CARD, files)

    page = client.get("/").text

    assert 'class="fine-tune"' in page
    assert "<img" not in page


def test_a_version_that_cannot_be_loaded_is_a_warning(app: Flask, client: FlaskClient) -> None:
    versions = service_of(app).versions
    wrong = versions.publish({"other": torch.zeros(1)}, VersionCard(), {}).version_id
    versions.promote(wrong)
    wait_until(lambda: wrong in service_of(app).engine.status().refused, "it was refused")

    page = client.get("/").text

    assert f"{wrong} was promoted but could not be loaded" in page
    assert '<strong id="serving">ssp-sam-test-base</strong>' in page


def test_links_lead_to_label_studio_as_browsers_reach_it(
    settings: Settings, redis_server: Redis, app: Flask, client: FlaskClient
) -> None:
    client.post("/setup", json={"project": "7.1", "schema": RECOMMENDED_CONFIG})
    assert f'href="{settings.label_studio_url}/projects/7/data"' in client.get("/").text

    app.extensions["sspsam"].settings.label_studio_host = "https://label.example/"

    assert 'href="https://label.example/projects/7/data"' in client.get("/").text


def test_projects_say_what_they_lack(client: FlaskClient) -> None:
    bare = '<View><Image name="photo" value="$image"/></View>'
    client.post("/setup", json={"project": "7.1", "schema": bare, "extra_params": ""})
    client.post("/setup", json={"project": "8.1", "schema": RECOMMENDED_CONFIG})
    client.post("/setup", json={"project": "9.1", "schema": "<View>"})

    page = client.get("/").text

    assert "Project 7" in page
    assert "there is no &lt;BrushLabels&gt;" in page
    assert "toName=&#34;photo&#34;" in page
    assert "labeling config is not XML" in page
    assert page.count("Required in the labeling config") == 2, "the prompt and the brush of project 7"


def test_what_the_worker_decided_is_shown(client: FlaskClient, redis_server: Redis) -> None:
    client.post("/setup", json={"project": "7.1", "schema": RECOMMENDED_CONFIG})
    decision = {
        "at": "2026-05-01T13:00:00+00:00",
        "trigger": "annotation",
        "start": False,
        "reason": "3 of 8 corrected masks",
    }
    redis_server.set("sspsam:decision:7", json.dumps(decision))
    redis_server.set("sspsam:progress:7", json.dumps({"run": "r", "step": 20, "steps": 300}))

    page = client.get("/").text

    assert "No fine-tune, after an annotation was saved, 2026-05-01 13:00 UTC: 3 of 8 corrected masks" in page
    assert "step 20 of 300" in page


def test_a_decision_stored_by_the_version_before_is_shown(client: FlaskClient, redis_server: Redis) -> None:
    client.post("/setup", json={"project": "7.1", "schema": RECOMMENDED_CONFIG})
    for old, verdict in (({"go": True}, "Fine-tune"), ({"go": False, "put_off": True}, "Not yet")):
        decision = {"at": "2026-11-18T08:30:00+00:00", "trigger": "now", "reason": "r", **old}
        redis_server.set("sspsam:decision:7", json.dumps(decision))
        assert f"{verdict}, " in client.get("/").text


def test_what_waits_and_what_has_arrived_is_shown(client: FlaskClient, redis_server: Redis) -> None:
    client.post("/setup", json={"project": "7.1", "schema": RECOMMENDED_CONFIG})
    redis_server.rpush("rq:queue:prelabel", "a", "b")
    before = " ".join(client.get("/").text.split())
    for number, title in ((7, "Streets & cars"), (8, "Elsewhere")):
        event = {"action": "PROJECT_UPDATED", "project": {"id": number, "title": title}}
        client.post("/webhook", json=event)
    after = client.get("/").text

    assert "Waiting jobs: events 0, training 0, prelabel 2." in before
    assert "No webhook received yet" in before
    assert "Last webhook:" in after
    assert "Project 7" in before
    assert "Streets &amp; cars" in after
    assert "Elsewhere" not in after, "not connected"
    assert "No webhook received yet" not in after


def test_what_annotators_could_not_get_is_shown_to_the_lead(
    client: FlaskClient, redis_server: Redis, label_studio: Web
) -> None:
    client.post("/setup", json={"project": "2.1", "schema": RECOMMENDED_CONFIG})
    client.post("/setup", json={"project": "3.1", "schema": RECOMMENDED_CONFIG})
    ask(client, prompt("very " * 90))
    assert "Recent errors" not in client.get("/").text, "a phrase is the annotator's"
    for number in range(PROBLEMS_KEPT + 1):
        ask(client, prompt("the red square"), one=task(40 + number, f"/data/{number}.png"))
    label_studio.answers["/data/broken.png"] = Response(b"no picture")
    ask(client, click(3, 3, "1"), one=task(50, "/data/broken.png"))

    page = client.get("/").text

    assert page.count("Recent errors") == 1, "of the project that it is about"
    assert re.findall(r"data\?task=(\d+)", page) == ["50", "45", "44", "43", "42"], "the last first"
    assert "not an image" in page
    assert "answers 404" in page
    assert re.search(r"UTC, request [0-9a-f]{12}<", page)
    assert 0 < redis_server.ttl("sspsam:problems:2") <= PROBLEMS_S


def test_an_unreadable_store_does_not_close_the_page(app: Flask, client: FlaskClient) -> None:
    folder = service_of(app).versions.folder
    folder.mkdir(parents=True)
    (folder / "current.json").write_text("{")

    response = client.get("/")

    assert response.status_code == 200
    assert "Cannot read the version store" in response.text


def test_a_missing_key_is_a_warning(app: Flask, client: FlaskClient) -> None:
    assert "No API key for Label Studio" not in client.get("/").text
    settings: Settings = service_of(app).settings
    settings.label_studio_api_key = type(settings.label_studio_api_key)("")

    assert "No API key for Label Studio" in client.get("/").text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2026-05-01T13:00:59+00:00", "2026-05-01 13:00 UTC"),
        ("2026-05-01T13:00:00+02:00", "2026-05-01 11:00 UTC"),
        ("", ""),
        ("soon", "soon"),
    ],
)
def test_times(text: str, shown: str) -> None:
    assert short_time(text) == shown
