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

from backend.console.dashboard import short_time
from backend.console.fine_tunes import CURVE_POINTS, CURVE_WH, PICTURES, how_trained
from backend.corrections import CorrectionLog, Tally
from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.serving.batch_queue import Caller
from backend.settings import Settings
from backend.state.redis_store import PROBLEMS_KEPT, PROBLEMS_S
from backend.web.app import create_app
from finetune.training.loop import LOG_NAME
from sspsam.version_store.lines import line_of_project
from sspsam.version_store.store import WEIGHTS, VersionCard, VersionStore
from tests.backend.colours import ColourPredictor, picture
from tests.backend.editor import ask, click, prompt, task
from tests.backend.parts import BASE, service_of
from tests.backend.web_server import Web
from tests.facts import untold
from tests.html_page import Page
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


def opened(client: FlaskClient) -> Page:
    return Page(client.get("/").text)


def test_at_first_it_says_how_to_connect(client: FlaskClient) -> None:
    page = opened(client)

    assert page.text_of("serving") == BASE
    assert "sspsam connect --project ID" in page.texts("code")
    assert page.text_of("recommended") == " ".join(RECOMMENDED_CONFIG.split()), "a labeling config to copy"


@pytest.mark.parametrize(("preset", "is_said"), [("ssp-sam-demo", True), ("ssp-sam-test", False)])
def test_the_demos_weights_are_said_to_know_no_photographs(
    settings: Settings, redis_server: Redis, preset: str, is_said: bool
) -> None:
    settings = settings.model_copy(update={"preset": preset, "weights": None})
    text = create_app(settings, redis_server, ColourPredictor()).test_client().get("/").text
    assert ("stickers, not photographs" in text and "--model photographs" in text) == is_said


def test_versions_come_with_the_figure_that_decided(app: Flask, client: FlaskClient) -> None:
    versions = service_of(app).versions
    better = publish(versions, CARD, 1)
    versions.promote(better, "mIoU 0.512 -> 0.604: better")
    worse = publish(versions, replace(CARD, metrics={**CARD.metrics, "metric": "gIoU"}), 2)
    versions.reject(worse, "not <better>")
    wait_until(lambda: service_of(app).engine.version == better, "the better one serves")

    page = opened(client)

    assert page.text_of("serving") == better
    row = page.row(better)
    assert untold(row, "mIoU", "51.2 %", "60.4 %", "14", "promoted", "mIoU 0.512 -> 0.604: better") == []
    assert untold(page.row(worse), "rejected", "not <better>") == []
    assert client.get("/versions").json == {"versions": [better, BASE]}, "none that was rejected"


@pytest.fixture
def tuned(app: Flask) -> str:
    """A version as the worker leaves it."""
    log = "".join(
        json.dumps({"step": step, "lr": 1e-4, "total": 8.0 - step / 100}) + "\n" for step in range(400)
    )
    card = replace(
        CARD,
        parent=BASE,
        data={
            "project": 7,
            "trained_on": 23,
            "composition": {"corrected": 9, "accepted": 14, "added": 0, "confirmed absent": 0},
            "composition_by_label": {"cup": {"corrected": 9, "accepted": 1}, "jug": {"accepted": 13}},
        },
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

    page = opened(client)

    assert [title.split()[0] for title in page.texts("h3")] == [bare, tuned], "the newest first"
    assert untold(page.text, BASE, "23 labels", "project 7", "400 steps", "12 samples", "0.0003") == []
    assert untold(page.text, "8", "4.01", "399 steps") == [], "the loss"
    (points,) = page.values("polyline", "points")
    places = [tuple(map(float, pair.split(","))) for pair in points.split()]
    assert places[0] == (0, 0)
    assert places[-1] == CURVE_WH
    assert len(places) <= CURVE_POINTS + 1
    (caption,) = page.texts("figcaption")
    assert untold(caption, "a <b>cup</b>", "IoU", "41 %", "84 %") == []
    assert page.values("img", "src") == [f"reports/{tuned}/before-after-1.jpg"], "others are no files of it"
    assert f"reports/{tuned}/report.html" in page.values("a", "href")
    for name, start in (("before-after-1.jpg", b"\xff\xd8"), ("report.html", b"<p>its")):
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
    assert opened(client).text_of("training") is None, "the weights that ship"
    service_of(app).versions.promote(tuned)
    wait_until(lambda: service_of(app).engine.version == tuned, "it serves")

    assert untold(opened(client).text_of("training") or "", BASE, "23 labels", "400 steps") == []
    assert "(9 corrected, 14 accepted)" in (opened(client).text_of("training") or "")
    assert "cup: 9 corrected, 1 accepted; jug: 13 accepted." in client.get("/").text


def test_a_damaged_log_shows_the_curve_up_to_there(app: Flask, client: FlaskClient) -> None:
    lines = ['{"step": 1, "total": 3}', '{"step": 2, "total": 2}', '{"step": 3, "total": NaN}', "{", "[]"]
    files = {LOG_NAME: "\n".join(lines)}
    service_of(app).versions.publish({"shift": torch.tensor(1)}, CARD, files)

    page = opened(client)

    assert page.values("polyline", "points") == [f"0.0,0.0 {CURVE_WH[0]:.1f},{CURVE_WH[1]:.1f}"], "2 steps"
    assert page.texts("figcaption") == []


@pytest.mark.parametrize(
    "listed", ["{", "[]", "7", '["a"]', '[{"file": "report.html"}]', '[{"file": 1, "phrase": 2}]']
)
def test_a_damaged_list_of_pictures_shows_none(app: Flask, client: FlaskClient, listed: str) -> None:
    files = {PICTURES: listed, "report.html": "<p>its report</p>"}
    service_of(app).versions.publish({"shift": torch.tensor(1)}, CARD, files)

    page = opened(client)

    assert len(page.texts("h3")) == 1
    assert "img" not in page.tags


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"project": 7, "trained_on": 12}, "Fine-tuned from ssp-sam-test-0001 on 12 labels of project 7."),
        (
            {"projects": [3, 7], "trained_on": 12},
            "Fine-tuned from ssp-sam-test-0001 on 12 labels of projects 3, 7.",
        ),
        ({"adopted": "ssp-sam-test-0001"}, "A copy of ssp-sam-test-0001, adopted from another line."),
        ({}, "Fine-tuned from ssp-sam-test-0001."),
    ],
    ids=["one project", "a shared line", "adopted", "unknown"],
)
def test_a_version_tells_whose_labels_it_learned(data: dict[str, object], told: str) -> None:
    assert how_trained(VersionCard(parent="ssp-sam-test-0001", data=data)) == told


def test_each_project_is_shown_with_its_own_line(
    app: Flask, client: FlaskClient, redis_server: Redis
) -> None:
    """Neither versions, pictures, corrections, decisions nor errors of another project are on its page."""
    parts = service_of(app)
    versions, redis_store = parts.versions, parts.redis_store
    tuned = {}
    for shift, project in enumerate((7, 9), start=1):
        client.post("/setup", json={"project": f"{project}.1", "schema": RECOMMENDED_CONFIG})
        redis_store.projects.note_title(str(project), f"Project of user {project}")
        card = replace(CARD, line=f"project-{project}", data={"project": project})
        listed = [{"file": "a.webp", "phrase": f"cat {project}", "before": 0.1, "after": 0.9}]
        files: dict[str, Path | str] = {"before-after.json": json.dumps(listed), "a.webp": "picture"}
        tuned[project] = versions.publish({"shift": torch.tensor(shift)}, card, files).version_id
        versions.promote(tuned[project], f"better {project}")
        tally = Tally(tuned[project], f"label {project}", accepted=2)
        CorrectionLog(redis_server).note(project, 1, [tally, replace(tally, label="other")])
        redis_store.note_problem(str(project), "1", f"problem {project}")
    wait_until(
        lambda: [parts.engine.version_of(str(project)) for project in tuned] == [*tuned.values()],
        "both serve",
    )
    whole = client.get("/").text
    for project, other in ((7, 9), (9, 7)):
        text = client.get(f"/?project={project}").text
        page = Page(text)
        assert page.text_of("serving") == tuned[project]
        assert untold(text, f"cat {project}", f"better {project}", f"problem {project}") == []
        assert page.values("img", "src") == [f"reports/{tuned[project]}/a.webp"]
        told = (tuned[other], f"cat {other}", f"better {other}", f"label {other}", f"problem {other}")
        assert untold(text, *told, f"user {other}") == [*told, f"user {other}"]
        assert untold(whole, *told, f"?project={project}") == []


def test_a_version_that_cannot_be_loaded_is_a_warning(app: Flask, client: FlaskClient) -> None:
    versions = service_of(app).versions
    wrong = versions.publish({"other": torch.zeros(1)}, VersionCard(), {}).version_id
    versions.promote(wrong)
    wait_until(lambda: wrong in service_of(app).engine.status().refused, "it was refused")

    page = opened(client)

    assert any(wrong in warning for warning in page.texts("p", "warning"))
    assert page.text_of("serving") == BASE


def test_links_lead_to_label_studio_as_browsers_reach_it(
    settings: Settings, redis_server: Redis, app: Flask, client: FlaskClient
) -> None:
    client.post("/setup", json={"project": "7.1", "schema": RECOMMENDED_CONFIG})
    assert f"{settings.label_studio_url}/projects/7/data" in opened(client).values("a", "href")

    app.extensions["sspsam"].settings.label_studio_host = "https://label.example/"

    assert "https://label.example/projects/7/data" in opened(client).values("a", "href")


def test_projects_say_what_they_lack(client: FlaskClient) -> None:
    bare = '<View><Image name="photo" value="$image"/></View>'
    client.post("/setup", json={"project": "7.1", "schema": bare, "extra_params": ""})
    client.post("/setup", json={"project": "8.1", "schema": RECOMMENDED_CONFIG})
    client.post("/setup", json={"project": "9.1", "schema": "<View>"})

    page = opened(client)

    assert untold(page.text, "project 7", "project 8", "<BrushLabels>", "not XML") == []
    additions = [tag for tag in page.texts("pre") if 'toName="photo"' in tag]
    assert {tag.split()[0] for tag in additions} >= {"<TextArea", "<BrushLabels"}, "of project 7"
    assert len(page.texts("div", "warning")) == 2, "it needs these two; others are advice"


def test_what_the_worker_decided_is_shown(client: FlaskClient, redis_server: Redis) -> None:
    client.post("/setup", json={"project": "7.1", "schema": RECOMMENDED_CONFIG})
    decision = {
        "at": "2026-05-01T13:00:00+00:00",
        "trigger": "annotation",
        "start": False,
        "reason": "3 of 8 corrected masks",
    }
    redis_server.set("sspsam:decision:7", json.dumps(decision))
    progress = {"run": "r", "step": 120, "steps": 300, "left_s": 130.0}
    redis_server.set("sspsam:progress:7", json.dumps(progress))

    page = opened(client)

    told = ("No fine-tune", "annotation", "2026-05-01 13:00 UTC", "3 of 8 corrected masks")
    assert untold(page.text, *told, "40 %, 2 minutes left (step 120 of 300)") == []
    redis_server.set("sspsam:progress:7", json.dumps({**progress, "step": 300}))
    assert "both versions are being compared" in opened(client).text
    redis_server.set("sspsam:progress:7", json.dumps({"run": "r", "step": "x", "steps": None}))
    assert "A fine-tune is running" not in opened(client).text


def test_a_decision_stored_by_the_version_before_is_shown(client: FlaskClient, redis_server: Redis) -> None:
    client.post("/setup", json={"project": "7.1", "schema": RECOMMENDED_CONFIG})
    for old, verdict in (({"go": True}, "Fine-tune"), ({"go": False, "put_off": True}, "Not yet")):
        decision = {"at": "2026-11-18T08:30:00+00:00", "trigger": "now", "reason": "r", **old}
        redis_server.set("sspsam:decision:7", json.dumps(decision))
        assert f"{verdict}, " in opened(client).text


def test_what_waits_and_what_has_arrived_is_shown(client: FlaskClient, redis_server: Redis) -> None:
    client.post("/setup", json={"project": "7.1", "schema": RECOMMENDED_CONFIG})
    redis_server.rpush("rq:queue:prelabel", "a", "b")
    before = opened(client)
    for number, title in ((7, "Streets & cars"), (8, "Elsewhere")):
        event = {"action": "PROJECT_UPDATED", "project": {"id": number, "title": title}}
        client.post("/webhook", json=event)
    after = opened(client)

    assert untold(before.text_of("queues") or "", "events 0", "training 0", "prelabel 2") == []
    (warning,) = before.texts("p", "warning")
    assert untold(warning, "webhook", "sspsam connect --project 7", "SSRF_PROTECTION_ENABLED=false") == []
    assert after.texts("p", "warning") == []
    assert "Project 7" in before.texts("a")
    assert "Streets & cars" in after.texts("a")
    assert "Elsewhere" not in after.text, "not connected"


def test_what_annotators_could_not_get_is_shown_to_the_lead(
    client: FlaskClient, redis_server: Redis, label_studio: Web
) -> None:
    client.post("/setup", json={"project": "2.1", "schema": RECOMMENDED_CONFIG})
    client.post("/setup", json={"project": "3.1", "schema": RECOMMENDED_CONFIG})
    ask(client, prompt("very " * 90))
    assert opened(client).texts("li") == [], "a phrase is the annotator's"
    for number in range(PROBLEMS_KEPT + 1):
        ask(client, prompt("the red square"), one=task(40 + number, f"/data/{number}.png"))
    label_studio.answers["/data/broken.png"] = Response(b"no picture")
    ask(client, click(3, 3, "1"), one=task(50, "/data/broken.png"))

    page = opened(client)

    links = [link.partition("/projects/")[2] for link in page.values("a", "href") if "task=" in link]
    assert links == [f"2/data?task={number}" for number in (50, 45, 44, 43, 42)], "the last first"
    first, *others = page.texts("li")
    assert "not an image" in first
    assert all("404" in one for one in others)
    assert re.search(r"UTC, request [0-9a-f]{12}$", first)
    assert 0 < redis_server.ttl("sspsam:problems:2") <= PROBLEMS_S


def test_an_unreadable_store_does_not_close_the_page(app: Flask, client: FlaskClient) -> None:
    folder = service_of(app).versions.folder
    folder.mkdir(parents=True)
    (folder / "current.json").write_text("{")

    response = client.get("/")

    assert response.status_code == 200
    assert any("version store" in warning for warning in Page(response.text).texts("p", "warning"))


def test_a_missing_key_is_a_warning(app: Flask, client: FlaskClient) -> None:
    assert "LABEL_STUDIO_API_KEY" not in opened(client).text
    settings: Settings = service_of(app).settings
    settings.label_studio_api_key = type(settings.label_studio_api_key)("")

    assert "LABEL_STUDIO_API_KEY" in opened(client).text


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


def test_a_refusal_names_its_line(app: Flask, client: FlaskClient) -> None:
    service = service_of(app)
    for project, title in ((7, "Cups"), (8, "Boats"), (9, "Trees")):
        client.post("/setup", json={"project": f"{project}.1", "schema": RECOMMENDED_CONFIG})
        service.redis_store.projects.note_title(str(project), title)
    version = publish(service.versions, replace(CARD, line=line_of_project(7)), 1)
    service.versions.promote(version, "better on cups")
    bad = publish(service.versions, replace(CARD, line=line_of_project(8)), 2)
    service.versions.promote(bad)
    (service.versions.path(bad) / WEIGHTS).write_bytes(b"damaged")
    service.engine.refresh()
    service.engine.predict("picture", picture, ["red"], Caller(project="8"))

    page = opened(client)

    (warning,) = [text for text in page.texts("p", "warning") if bad in text]
    assert untold(warning, "project-8", BASE, "sha256") == []
    setup = {
        project: client.post("/setup", json={"project": project, "schema": ""}).json for project in (7, 8)
    }
    assert setup == {7: {"model_version": version}, 8: {"model_version": BASE}}
    assert client.get("/versions?project=7").json == {"versions": [version, BASE]}
    metrics = client.get("/metrics").text
    assert f'sspsam_version_refused{{line="project-8",version="{bad}"}} 1.0' in metrics
    assert f'sspsam_line_info{{line="project-8",version="{BASE}"}} 1.0' in metrics
    assert f'sspsam_line_info{{line="default",version="{BASE}"}} 1.0' in metrics
    assert client.get("/health").json["model_version"] == BASE
