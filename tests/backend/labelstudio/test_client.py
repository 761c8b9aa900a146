"""Label Studio's API: keys, pages and errors, against an HTTP server that responds like it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.wrappers import Request, Response

from backend.errors import (
    LabelStudioError,
    LabelStudioNotFound,
    LabelStudioUnauthorized,
    LabelStudioUnavailable,
)
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.connection import ACCESS_TOKEN_AGE_S, PAGE_SIZE
from tests.backend.web_server import Web, as_json, slowly

LEGACY = "f" * 40
PERSONAL = "eyJhbGciOi.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.c2lnbmF0dXJl"


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as web:
        yield web


def test_a_legacy_token_is_sent_as_it_is(web: Web) -> None:
    web.answers["/api/projects/3/"] = as_json({"id": 3})

    assert LabelStudioClient(web.url + "/", LEGACY).project(3) == {"id": 3}
    assert web.authorizations == [f"Token {LEGACY}"]


def test_a_personal_token_is_exchanged_once(web: Web) -> None:
    web.answers["/api/token/refresh/"] = as_json({"access": "short-lived"})
    web.answers["/api/projects/3/"] = as_json({"id": 3})
    client = LabelStudioClient(web.url, PERSONAL)

    client.project(3)
    client.project(3)

    assert web.authorizations == [None, "Bearer short-lived", "Bearer short-lived"]
    assert web.asked[0].body == {"refresh": PERSONAL}


def test_an_access_token_that_was_refused_is_renewed_once(web: Web) -> None:
    tokens = iter(["old", "new"])
    web.answers["/api/token/refresh/"] = lambda request: as_json({"access": next(tokens)})

    def project(request: Request) -> Response:
        fresh = request.headers["Authorization"] == "Bearer new"
        return as_json({"id": 3}) if fresh else as_json({"detail": "expired"}, 401)

    web.answers["/api/projects/3/"] = project

    assert LabelStudioClient(web.url, PERSONAL).project(3) == {"id": 3}
    assert web.authorizations == [None, "Bearer old", None, "Bearer new"]


def test_an_access_token_is_renewed_before_it_ends(web: Web) -> None:
    web.answers["/api/token/refresh/"] = as_json({"access": "short-lived"})
    web.answers["/api/projects/3/"] = as_json({"id": 3})
    client = LabelStudioClient(web.url, PERSONAL, access_token_age_s=0)

    client.project(3)
    client.project(3)

    assert ACCESS_TOKEN_AGE_S < 300
    assert [request.path for request in web.asked].count("/api/token/refresh/") == 2


@pytest.mark.parametrize("key", [LEGACY, PERSONAL])
def test_a_refused_key_says_which_setting_to_change(web: Web, key: str) -> None:
    for path in ("/api/projects/3/", "/api/token/refresh/"):
        web.answers[path] = as_json({"detail": "Invalid token."}, 401)

    with pytest.raises(LabelStudioUnauthorized, match=r"Invalid token.*LABEL_STUDIO_API_KEY") as raised:
        LabelStudioClient(web.url, key).project(3)
    assert key not in str(raised.value)


def test_without_a_key_nothing_is_sent(web: Web) -> None:
    with pytest.raises(LabelStudioUnauthorized, match="set LABEL_STUDIO_API_KEY"):
        LabelStudioClient(web.url, "").project(3)
    assert web.asked == []


def test_a_netrc_file_does_not_replace_the_key(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    web.answers["/api/projects/3/"] = as_json({"id": 3})

    LabelStudioClient(web.url, LEGACY).project(3)

    assert web.authorizations == [f"Token {LEGACY}"]


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        (as_json({"detail": "No such project."}, 404), LabelStudioNotFound, "No such project"),
        (as_json({"validation_errors": {"title": ["too short"]}}, 400), LabelStudioError, "400: too short"),
        (as_json({"non_field_errors": ["no <b>health</b>"]}, 400), LabelStudioError, "400: no health"),
        (Response("<h1>Oh</h1>", 500), LabelStudioError, "500: INTERNAL SERVER ERROR"),
        (Response("<html>", 200), LabelStudioError, "is not Label Studio"),
        (as_json([1]), LabelStudioError, "answered"),
    ],
)
def test_errors_say_what_label_studio_says(
    web: Web, answer: Response, error: type[Exception], reason: str
) -> None:
    web.answers["/api/projects/3/"] = answer

    with pytest.raises(error, match=reason):
        LabelStudioClient(web.url, LEGACY).project(3)


def test_a_private_address_is_no_question_of_the_key(web: Web) -> None:
    """403 with this text means that Label Studio does not connect to private addresses."""
    detail = "URL resolves to a reserved network address (block: 127.0.0.0/8)"
    web.answers["/api/ml"] = as_json({"detail": detail}, 403)

    with pytest.raises(LabelStudioError, match="reserved network address") as raised:
        LabelStudioClient(web.url, LEGACY).connect_ml_backend(1, "http://127.0.0.1:9090", "title")
    assert not isinstance(raised.value, LabelStudioUnauthorized)


def test_a_server_that_is_down_or_silent_is_unavailable(web: Web) -> None:
    web.answers["/api/projects/3/"] = slowly(as_json({}), 0.5)

    with pytest.raises(LabelStudioUnavailable, match="is it running"):
        LabelStudioClient("http://127.0.0.1:9", LEGACY).project(3)
    with pytest.raises(LabelStudioUnavailable, match="is it running"):
        LabelStudioClient(web.url, LEGACY, timeout_s=0.1).project(3)
    with pytest.raises(LabelStudioUnavailable, match="is it running"):
        LabelStudioClient("http://127.0.0.1:9", PERSONAL).project(3)


@pytest.mark.parametrize(
    ("count", "most", "pages"),
    [
        (0, PAGE_SIZE, 1),
        (1, PAGE_SIZE, 1),
        (PAGE_SIZE, PAGE_SIZE, 1),
        (PAGE_SIZE + 1, PAGE_SIZE, 2),
        (PAGE_SIZE + 1, 50, 3),  # a server whose pages are shorter than asked for
    ],
)
@pytest.mark.parametrize("states_total", [True, False])
def test_tasks_come_page_by_page(web: Web, count: int, most: int, pages: int, states_total: bool) -> None:
    def tasks(request: Request) -> Response:
        page, size = int(request.args["page"]), min(int(request.args["page_size"]), most)
        found = [{"id": number} for number in range(count)][(page - 1) * size : page * size]
        answer = {"tasks": found, "total": count} if states_total else {"tasks": found}
        return as_json(answer) if found or page == 1 else as_json({"detail": "Invalid page."}, 404)

    web.answers["/api/tasks"] = tasks

    listed = list(LabelStudioClient(web.url, LEGACY).tasks(7))

    assert [task["id"] for task in listed] == list(range(count))
    assert all("project=7" in request.path for request in web.asked)
    assert not states_total or len(web.asked) == pages


def test_files_are_uploaded_under_names_of_their_own(web: Web, tmp_path: Path) -> None:
    received: dict[str, bytes] = {}

    def upload(request: Request) -> Response:
        for file in request.files.values():
            received[file.filename or ""] = file.read()
            file.close()
        return as_json({"task_count": len(received)})

    web.answers["/api/projects/3/import"] = upload
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        path.write_bytes(path.name.encode())

    assert LabelStudioClient(web.url, LEGACY).upload_images(3, paths) == {"task_count": 2}
    assert received == {"a.png": b"a.png", "b.png": b"b.png"}


def test_a_changed_backend_is_sent_whole(web: Web) -> None:
    web.answers["/api/ml/5"] = as_json({"id": 5})
    record = {"id": 5, "project": 3, "timeout": 100.0, "is_interactive": False}

    LabelStudioClient(web.url, LEGACY).update_ml_backend(record, "http://backend", "title", ("user", "pass"))

    assert web.asked[0].body == record | {
        "is_interactive": True,
        "url": "http://backend",
        "title": "title",
        "auth_method": "BASIC_AUTH",
        "basic_auth_user": "user",
        "basic_auth_pass": "pass",
    }
