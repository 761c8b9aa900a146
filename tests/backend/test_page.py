"""The start page says which model serves, what became of each version, and what projects lack."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.page import short_time
from backend.service import Service
from backend.settings import Settings
from sspsam.versions import VersionCard, VersionStore
from tests.backend.waiting import wait_until

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


def service_of(app: Flask) -> Service:
    service: Service = app.extensions["sspsam"]
    return service


def publish(versions: VersionStore, card: VersionCard, shift: int) -> str:
    return versions.publish({"shift": torch.tensor(shift)}, card, {}).version_id


def test_at_first_it_says_how_to_connect(client: FlaskClient) -> None:
    page = client.get("/").text

    assert "ssp-sam-test-base" in page
    assert "The weights that ship with the preset" in page
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


def test_a_version_that_cannot_be_loaded_is_a_warning(app: Flask, client: FlaskClient) -> None:
    versions = service_of(app).versions
    wrong = versions.publish({"other": torch.zeros(1)}, VersionCard(), {}).version_id
    versions.promote(wrong)
    wait_until(lambda: wrong in service_of(app).engine.status().refused, "it was refused")

    page = client.get("/").text

    assert f"{wrong} was to serve and could not be loaded" in page
    assert '<strong id="serving">ssp-sam-test-base</strong>' in page


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
    assert page.count("cannot work") == 2, "the prompt and the brush of project 7"


def test_what_the_worker_decided_is_shown(client: FlaskClient, redis_server: Redis) -> None:
    client.post("/setup", json={"project": "7.1", "schema": RECOMMENDED_CONFIG})
    decision = {
        "at": "2026-05-01T13:00:00+00:00",
        "trigger": "annotation",
        "go": False,
        "reason": "3 of 8 corrected masks",
    }
    redis_server.set("sspsam:decision:7", json.dumps(decision))
    redis_server.set("sspsam:progress:7", json.dumps({"run": "r", "step": 20, "steps": 300}))

    page = client.get("/").text

    assert "No fine-tune, after an annotation was saved, 2026-05-01 13:00 UTC: 3 of 8 corrected masks" in page
    assert "step 20 of 300" in page


def test_what_waits_and_what_has_arrived_is_shown(client: FlaskClient, redis_server: Redis) -> None:
    client.post("/setup", json={"project": "7.1", "schema": RECOMMENDED_CONFIG})
    redis_server.rpush("rq:queue:prelabel", "a", "b")
    before = " ".join(client.get("/").text.split())
    client.post("/webhook", json={"action": "PROJECT_UPDATED", "project": {"id": 7}})
    after = client.get("/").text

    assert "Jobs that wait: events 0, training 0, prelabel 2." in before
    assert "Its webhook has never arrived" in before
    assert "Its webhook last arrived" in after
    assert "never arrived" not in after


def test_an_unreadable_store_does_not_close_the_page(app: Flask, client: FlaskClient) -> None:
    folder = service_of(app).versions.folder
    folder.mkdir(parents=True)
    (folder / "current.json").write_text("{")

    response = client.get("/")

    assert response.status_code == 200
    assert "The versions cannot be read" in response.text


def test_a_missing_key_is_a_warning(app: Flask, client: FlaskClient) -> None:
    assert "There is no key" not in client.get("/").text
    settings: Settings = service_of(app).settings
    settings.label_studio_api_key = type(settings.label_studio_api_key)("")

    assert "There is no key" in client.get("/").text


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
