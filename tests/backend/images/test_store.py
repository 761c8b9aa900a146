"""Fetching of images: sources, keys, limits, and pixels."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np
import pytest
from werkzeug.utils import redirect
from werkzeug.wrappers import Request, Response

from backend.errors import (
    ImageError,
    ImageFetchError,
    ImageFormatError,
    ImageMissingError,
    LabelStudioUnauthorized,
)
from backend.images.store import ImageStore
from backend.labelstudio.client import LabelStudioClient
from tests.backend.colours import encoded, picture
from tests.backend.images.stores import KEY, PATH, elsewhere, label_studio, make_store, store
from tests.backend.web_server import Web, as_json, slowly

__all__ = ["elsewhere", "label_studio", "store"]


def test_an_upload_is_fetched_once_with_our_key(store: ImageStore, label_studio: Web) -> None:
    digest = store.digest(PATH)

    assert digest == hashlib.sha256(encoded(picture())).hexdigest()
    assert store.digest(PATH) == digest
    assert label_studio.authorizations == [f"Token {KEY}"]
    assert store.path(digest).read_bytes() == encoded(picture())
    np.testing.assert_array_equal(store.decode(digest), picture())
    assert [path.name for path in store.folder.iterdir()] == [digest], "nothing half-written is left"


def test_a_file_that_was_removed_is_fetched_again(store: ImageStore, label_studio: Web) -> None:
    digest = store.digest(PATH)
    store.path(digest).unlink()

    with pytest.raises(ImageFetchError, match="not in the cache"):
        store.decode(digest)
    assert store.digest(PATH) == digest
    assert len(label_studio.asked) == 2


def test_our_key_goes_nowhere_else(store: ImageStore, elsewhere: Web) -> None:
    store.digest(f"{elsewhere.url}/a.png")

    assert elsewhere.authorizations == [None]


def test_our_key_does_not_follow_a_redirect_away(
    store: ImageStore, label_studio: Web, elsewhere: Web
) -> None:
    label_studio.answers["/data/upload/1/moved.png"] = redirect(f"{elsewhere.url}/a.png")

    store.digest("/data/upload/1/moved.png")

    assert label_studio.authorizations == [f"Token {KEY}"]
    assert elsewhere.authorizations == [None]


def test_a_redirect_within_label_studio_keeps_the_key(store: ImageStore, label_studio: Web) -> None:
    label_studio.answers["/data/moved.png"] = redirect(PATH)

    store.digest("/data/moved.png")

    assert label_studio.authorizations == [f"Token {KEY}"] * 2


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://example.com/a.png", "data:image/png;base64,AA"]
)
def test_a_redirect_to_another_scheme_is_refused(store: ImageStore, label_studio: Web, target: str) -> None:
    label_studio.answers["/data/moved.png"] = Response("", 302, {"Location": target})

    with pytest.raises(ImageMissingError, match="only http"):
        store.digest("/data/moved.png")


def test_redirects_end(store: ImageStore, label_studio: Web) -> None:
    label_studio.answers["/data/loop.png"] = redirect("/data/loop.png")

    with pytest.raises(ImageFetchError, match="redirects too often"):
        store.digest("/data/loop.png")


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "  ",
        7,
        ["/data/upload/a.png"],
        "file:///etc/passwd",
        "s3://bucket/a.png",
        "a.png",
        "http://",
        "C:\\a.png",
    ],
)
def test_what_is_no_address_that_we_fetch(store: ImageStore, label_studio: Web, value: object) -> None:
    with pytest.raises(ImageMissingError):
        store.digest(value)
    assert label_studio.asked == []


@pytest.mark.parametrize(
    ("base", "value", "url"),
    [
        ("http://ls", "/data/a.png", "http://ls/data/a.png"),
        ("http://ls/", "/data/a.png", "http://ls/data/a.png"),
        ("http://ls/studio", "/data/a.png", "http://ls/studio/data/a.png"),
        ("http://ls/studio", "/studio/data/a.png", "http://ls/studio/data/a.png"),
        (
            "http://ls/studio",
            "/studio/tasks/3/resolve/?fileuri=x",
            "http://ls/studio/tasks/3/resolve/?fileuri=x",
        ),
        ("http://ls", "/studio/data/upload/3/a.png", "http://ls/data/upload/3/a.png"),
        (
            "http://ls",
            "/studio/data/local-files/?d=data/upload/a",
            "http://ls/data/local-files/?d=data/upload/a",
        ),
        ("http://ls", "/data/local-files/?d=/data/upload/a", "http://ls/data/local-files/?d=/data/upload/a"),
        ("http://ls", "//evil.example/a.png", "http://ls//evil.example/a.png"),
        ("http://ls", " https://cdn.example/a.png ", "https://cdn.example/a.png"),
    ],
)
def test_resolve(tmp_path: Path, base: str, value: str, url: str) -> None:
    assert make_store(tmp_path, base).resolve(value) == url


@pytest.mark.parametrize(
    ("base", "host", "value", "url"),
    [
        ("http://ls:8080", "https://label.example", "/data/local-files/?d=a", "/data/local-files/?d=a"),
        (
            "http://ls:8080",
            "https://label.example/",
            "/tasks/7/resolve/?fileuri=a",
            "/tasks/7/resolve/?fileuri=a",
        ),
        ("http://ls:8080/studio", "https://label.example/studio", "/data/upload/a.png", "/data/upload/a.png"),
        ("http://ls:8080", "https://label.example/studio", "/data/upload/a.png", "/data/upload/a.png"),
        ("http://ls:8080", "https://label.example/studio/", "/tasks/7/presign/?a", "/tasks/7/presign/?a"),
    ],
)
def test_label_studio_is_asked_where_we_reach_it(
    tmp_path: Path, base: str, host: str, value: str, url: str
) -> None:
    """Its storages' tasks hold the address that it has for browsers."""
    client = LabelStudioClient(base, KEY)
    store = ImageStore(tmp_path, client, 10**6, 10**5, timeout_s=10.0, host=host)

    assert store.resolve(host.rstrip("/") + value) == base + url
    assert store.resolve(urlsplit(host).path.rstrip("/") + value) == base + url
    assert store.resolve(f"https://label.example.evil{value}") == f"https://label.example.evil{value}"


def test_a_file_of_label_studio_at_another_address_names_the_setting(tmp_path: Path) -> None:
    store = make_store(tmp_path, "http://127.0.0.1:9")
    for path in ("/data/local-files/?d=a.png", "/studio/tasks/3/resolve/?fileuri=x", "/data/upload/3/a.png"):
        with pytest.raises(ImageMissingError, match="LABEL_STUDIO_HOST"):
            store.digest(f"https://label.example{path}")
    with pytest.raises(ImageMissingError, match=r"IMAGE_HOSTS$"):
        store.digest("https://cdn.example/data/a.png")


@pytest.mark.parametrize("scheme", ["s3", "gs", "azure-blob"])
def test_what_lies_in_a_storage_comes_through_label_studio(
    store: ImageStore, label_studio: Web, elsewhere: Web, scheme: str
) -> None:
    """Label Studio passes the file on, or redirects to a signed address, which must not see our key."""
    uri = f"{scheme}://bucket/a folder/ü.png"
    label_studio.answers["/tasks/7/resolve/"] = redirect(f"{elsewhere.url}/a.png")

    digest = store.digest(uri, "7")

    assert store.path(digest).is_file()
    (asked,) = label_studio.asked
    encoded_uri = parse_qs(urlsplit(asked.path).query)["fileuri"][0]
    assert base64.urlsafe_b64decode(encoded_uri).decode() == uri
    assert label_studio.authorizations == [f"Token {KEY}"]
    assert elsewhere.authorizations == [None]


def test_local_files_come_through_label_studio(store: ImageStore, label_studio: Web) -> None:
    label_studio.answers["/data/local-files/"] = Response(encoded(picture()))

    store.digest("/data/local-files/?d=pictures/a.png")

    assert label_studio.asked[0].path == "/data/local-files/?d=pictures/a.png"
    assert label_studio.authorizations == [f"Token {KEY}"]


@pytest.mark.parametrize("form", ["base64", "percent", "spaces", "lines", "unpadded"])
def test_a_picture_in_the_task_itself(store: ImageStore, label_studio: Web, form: str) -> None:
    data = encoded(picture())
    data += bytes(-(len(data) + 1) % 3)  # so that the text is padded
    text = base64.b64encode(data).decode()
    value = {
        "base64": f"data:image/png;base64,{text}",
        "percent": f"data:image/png,{quote(data)}",
        "spaces": f" DATA:image/png;charset=x;BASE64 , {text}\n",
        "lines": f"data:image/png;base64,{text[:40]}\n{text[40:]}",
        "unpadded": f"data:image/png;base64,{text.rstrip('=')}",
    }[form]

    digest = store.digest(value)

    np.testing.assert_array_equal(store.decode(digest), picture())
    assert label_studio.asked == []


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,%%%", "damaged"),
        ("data:image/png;base64,AAAA", "not an image"),
        ("data:text/html,<p>", "not an image"),
        ("data:image/png;base64," + "A" * 5_000_000, "larger than"),
    ],
)
def test_a_data_uri_that_is_no_picture(tmp_path: Path, label_studio: Web, value: str, reason: str) -> None:
    with pytest.raises(ImageFormatError, match=reason):
        make_store(tmp_path, label_studio.url, max_bytes=1_000_000).digest(value)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_names_the_setting(store: ImageStore, label_studio: Web, status: int) -> None:
    label_studio.answers[PATH] = Response("", status)

    with pytest.raises(LabelStudioUnauthorized, match="LABEL_STUDIO_API_KEY"):
        store.digest(PATH)


def test_an_access_token_that_was_refused_is_renewed_once(tmp_path: Path, label_studio: Web) -> None:
    """As after a night in which the machine slept, of which its clocks for intervals know nothing."""
    tokens = iter(["old", "new", "newer"])
    label_studio.answers["/api/token/refresh/"] = lambda request: as_json({"access": next(tokens)})

    def file(request: Request) -> Response:
        fresh = request.headers["Authorization"] == "Bearer new"
        return Response(encoded(picture())) if fresh else Response("", 401)

    label_studio.answers[PATH] = label_studio.answers["/data/upload/1/b.png"] = file
    client = LabelStudioClient(label_studio.url, "personal.access.token")
    store = ImageStore(tmp_path, client, 10**6, 10**5, timeout_s=10.0)

    np.testing.assert_array_equal(store.decode(store.digest(PATH)), picture())
    assert [value for value in label_studio.authorizations if value] == ["Bearer old", "Bearer new"]

    label_studio.answers["/data/upload/1/b.png"] = Response("", 401)
    with pytest.raises(LabelStudioUnauthorized, match="LABEL_STUDIO_API_KEY"):
        store.digest("/data/upload/1/b.png")
    assert [value for value in label_studio.authorizations if value][2:] == ["Bearer new", "Bearer newer"]


@pytest.mark.parametrize("status", [404, 500])
def test_a_server_that_does_not_give_it(store: ImageStore, label_studio: Web, status: int) -> None:
    label_studio.answers[PATH] = Response("", status)

    with pytest.raises(ImageFetchError, match=str(status)):
        store.digest(PATH)


def test_a_server_that_is_down(tmp_path: Path) -> None:
    with pytest.raises(ImageFetchError, match=r"127\.0\.0\.1:9 does not respond"):
        make_store(tmp_path, "http://127.0.0.1:9").digest(PATH)


def test_a_server_that_is_slow(tmp_path: Path, label_studio: Web) -> None:
    label_studio.answers[PATH] = slowly(Response(encoded(picture())), 1.0)

    with pytest.raises(ImageFetchError, match=r"did not arrive within 0\.1 s"):
        make_store(tmp_path, label_studio.url, timeout_s=0.1).digest(PATH)


@pytest.mark.parametrize("told", [True, False])
def test_a_file_that_is_too_large(tmp_path: Path, label_studio: Web, told: bool) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"x" * 3000

    label_studio.answers[PATH] = Response(b"x" * 3000 if told else chunks())

    with pytest.raises(ImageFormatError, match="larger than 2000 bytes"):
        make_store(tmp_path, label_studio.url, max_bytes=2000).digest(PATH)


def test_a_picture_with_too_many_pixels_is_not_decoded(tmp_path: Path, label_studio: Web) -> None:
    with pytest.raises(ImageFormatError, match="60 x 40 pixels; the limit is 2399"):
        make_store(tmp_path, label_studio.url, max_pixels=2399).digest(PATH)


@pytest.mark.parametrize("data", [b"", b"<html>log in</html>", b"%!PS-Adobe-3.0 EPSF-3.0", b"\x89PNG\r\n"])
def test_what_is_no_image_is_not_kept(store: ImageStore, label_studio: Web, data: bytes) -> None:
    label_studio.answers[PATH] = Response(data)

    with pytest.raises(ImageFormatError, match="not an image"):
        store.digest(PATH)
    assert not store.folder.exists()


def test_a_cut_file_is_damaged(store: ImageStore, label_studio: Web) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    label_studio.answers[PATH] = Response(encoded(noise, "JPEG")[:900])
    digest = store.digest(PATH)

    with pytest.raises(ImageFormatError, match="damaged"):
        store.decode(digest)


def test_every_error_is_one_that_an_annotator_may_read(store: ImageStore) -> None:
    with pytest.raises(ImageError) as raised:
        store.digest("http://user:secret@127.0.0.1:9/a.png")
    assert "secret" not in str(raised.value)


def test_a_file_of_this_machine_is_read_below_a_root(tmp_path: Path, label_studio: Web) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(encoded(picture()))
    value = f"file://{tmp_path}/pictures/a.png"

    store = make_store(tmp_path, label_studio.url, roots=[tmp_path / "pictures"])

    np.testing.assert_array_equal(store.decode(store.digest(value)), picture())
    with pytest.raises(ImageMissingError, match="IMAGE_ROOTS"):
        make_store(tmp_path, label_studio.url).digest(value)
    assert label_studio.asked == []
