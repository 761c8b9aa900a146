"""`sspsam try`: phrases on an uploaded picture. The same credentials and origin rules as the backend's."""

from __future__ import annotations

import io
import tempfile
from threading import Thread

import pytest
import requests
import waitress
from flask.testing import FlaskClient
from PIL import Image
from werkzeug.test import TestResponse

from backend.settings import Settings
from backend.web.trial import MAX_PHRASES, SERVER_OPTIONS, UPLOAD_MAX_BYTES, create_trial
from sspsam import Predictor

OWN = {"Origin": "http://localhost"}


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.from_preset("ssp-sam-test", "cpu")


@pytest.fixture
def client(predictor: Predictor) -> FlaskClient:
    return create_trial(Settings(image_max_pixels=1_000_000), predictor).test_client()


def picture(width: int = 60, height: int = 40, format: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(content, format)
    return content.getvalue()


def send(
    client: FlaskClient, content: bytes, phrases: str = "the dog", headers: dict[str, str] | None = None
) -> TestResponse:
    """Sends the form as browsers do."""
    field = '--limit\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n'
    body = (field.format("phrases", "") + phrases + "\r\n").encode()
    body += field.format("picture", '; filename="picture.png"').encode() + content + b"\r\n--limit--\r\n"
    kind = "multipart/form-data; boundary=limit"
    return client.post("/", data=body, content_type=kind, headers=OWN if headers is None else headers)


def test_phrases_are_answered_on_the_picture(client: FlaskClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "Answers come from ssp-sam-test" in page.text
    answered = send(client, picture(), "the dog\n\n the cat <b>\n")
    assert answered.status_code == 200
    assert 'src="data:image/jpeg;base64,' in answered.text
    assert "the dog\nthe cat &lt;b&gt;" in answered.text
    assert "img-src data:" in answered.headers["Content-Security-Policy"]
    assert answered.headers["Cache-Control"] == "no-store"


def test_pictures_stay_in_memory(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object, **values: object) -> None:
        raise AssertionError("a stream that may become a file")

    for module in ("formparser", "wrappers.request"):
        monkeypatch.setattr(f"werkzeug.{module}.default_stream_factory", forbidden)
    large = picture(900, 700, "BMP")
    assert len(large) > 500_000
    assert send(client, large).status_code == 200


def test_the_server_writes_no_picture_to_a_file_either(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*args: object, **values: object) -> None:
        raise AssertionError("a temporary file")

    monkeypatch.setattr(tempfile, "TemporaryFile", forbidden)
    app = create_trial(Settings(image_max_pixels=1_000_000), predictor)
    server = waitress.create_server(app, host="127.0.0.1", port=0, **SERVER_OPTIONS)
    thread = Thread(target=server.run)
    thread.start()
    url = f"http://127.0.0.1:{server.effective_port}/"
    try:
        for size, status in ((900 * 700 * 3, 200), (UPLOAD_MAX_BYTES + 1, 413), (2 * UPLOAD_MAX_BYTES, 413)):
            content = picture(900, 700, "BMP").ljust(size, b"\0")
            files, own = {"picture": ("picture.bmp", content)}, {"Origin": url.rstrip("/")}
            answered = requests.post(url, {"phrases": "the dog"}, files=files, headers=own, timeout=60)
            assert answered.status_code == status
    finally:
        server.close()
        server.task_dispatcher.shutdown()
        thread.join(20)


@pytest.mark.parametrize(
    ("content", "phrases", "status", "expected"),
    [
        (b"GIF89a no picture", "the dog", 422, "supported format"),
        (picture()[:50], "the dog", 422, "cannot be read"),
        (picture(2000, 1000), "the dog", 422, "more than 1,000,000 pixels"),
        (picture(), "", 400, "type 1 to 8 phrases"),
        (picture(), "dog\n" * (MAX_PHRASES + 1), 400, "type 1 to 8 phrases"),
        (picture(), "dog " * 90, 400, "77"),
        (bytes(UPLOAD_MAX_BYTES + 1), "the dog", 413, "more than 25 MB"),
    ],
    ids=["no picture", "truncated", "too many pixels", "no phrase", "too many", "too long", "too large"],
)
def test_what_cannot_be_answered_is_explained(
    client: FlaskClient, content: bytes, phrases: str, status: int, expected: str
) -> None:
    answered = send(client, content, phrases)
    assert answered.status_code == status
    assert expected in answered.text
    assert "data:image" not in answered.text


def test_without_a_picture(client: FlaskClient) -> None:
    answered = client.post("/", data={"phrases": "the dog"}, headers=OWN)
    assert (answered.status_code, "choose a picture" in answered.text) == (400, True)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {**OWN, "Sec-Fetch-Site": "cross-site"},
        {},
        {**OWN, "Host": "evil.example"},
    ],
    ids=["foreign", "cross-site", "no origin", "rebound name"],
)
def test_pages_of_other_sites_are_refused(client: FlaskClient, headers: dict[str, str]) -> None:
    assert send(client, picture(), headers=headers).status_code in (400, 415)


def test_credentials_are_required_if_there_are_some(predictor: Predictor) -> None:
    client = create_trial(Settings(basic_auth_user="ann", basic_auth_pass="secret"), predictor).test_client()
    refused = client.get("/")
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"].startswith("Basic")
    assert client.get("/", auth=("ann", "wrong")).status_code == 401
    assert client.get("/", auth=("ann", "secret")).status_code == 200
