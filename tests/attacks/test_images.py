"""Image values of tasks: requests with Label Studio's key, refused addresses, and files below the roots."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from threading import Event, Thread

import pytest
from werkzeug.wrappers import Response

from backend.errors import BackendError, ImageError, ImageMissingError
from backend.images.addresses import refusal
from backend.images.local_files import read_local
from backend.images.store import ImageStore
from backend.labelstudio.client import LabelStudioClient
from tests.backend.colours import encoded, picture
from tests.backend.web_server import Web

KEY = "planted-key"
PICTURE = Response(encoded(picture()), content_type="image/png")
API = '{"id": 7, "data": {}}'


@pytest.fixture
def label_studio() -> Iterator[Web]:
    with Web({}) as web:
        yield web


def store_of(folder: Path, url: str) -> ImageStore:
    return ImageStore(folder / "images", LabelStudioClient(url, KEY), 10**6, 10**6, 5.0)


WITH_KEY = [
    "/data/upload/2/a.png",
    "/data/upload/2/a%20b.png",
    "/data/local-files/?d=folder/a.png",
    "/tasks/7/resolve/?fileuri=czM6Ly9i",
    "/tasks/7/presign/?fileuri=czM6Ly9i",
    "/projects/2/resolve/?fileuri=czM6Ly9i",
    "/projects/2/presign/?fileuri=czM6Ly9i",
]
WITHOUT_KEY = [
    "/api/projects/2/next",
    "/api/projects/2/next?x=/data/upload/2/a.png",
    "/api/projects/2/export?exportType=JSON",
    "/api/tasks/7/annotations/",
    "/api/current-user/token",
    "/api/ml/1/train",
    "/user/logout",
    "/projects/2/data/",
    "/projects/2/resolve/../../api",
    "/tasks/7/resolve/next",
    "/tasks/x/resolve/",
    "/data",
    "/database/a.png",
    "/data/../api/projects/2/next",
    "/data/%2e%2e/api/projects/2/next",
    "/data/%2E%2E%2Fapi/projects/2/next",
    "/data/%252e%252e/api/projects/2/next",
    "/data/..%5capi",
    "/data/x/..;/api",
    "//data/upload/2/a.png",
    "/data//api/projects/2/next",
    "/DATA/upload/2/a.png",
]


@pytest.mark.parametrize("prefix", ["", "/studio"])
@pytest.mark.parametrize("value", [*WITH_KEY, *WITHOUT_KEY])
def test_the_key_is_sent_for_files_alone(
    tmp_path: Path, label_studio: Web, value: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else a task names, Label Studio gets a GET of a stranger."""
    monkeypatch.setattr(Web, "_application", lambda web, environ, start: answer_all(web, environ, start))
    store = store_of(tmp_path, label_studio.url + prefix)
    for place in (value, label_studio.url + prefix + value):
        with suppress(BackendError):
            store.digest(place, "7")
    expected = {f"Token {KEY}"} if value in WITH_KEY else {None}
    assert set(label_studio.authorizations) <= expected
    assert {request.method for request in label_studio.asked} <= {"GET"}
    if value in WITH_KEY:
        assert label_studio.asked


def answer_all(web: Web, environ: object, start: object) -> object:
    web.answers = Anything()
    return APPLICATION(web, environ, start)


APPLICATION = Web._application


class Anything(dict[str, Response]):
    def get(self, key: str, default: Response | None = None) -> Response:  # type: ignore[override]
        return PICTURE


def test_a_redirect_to_the_api_has_no_key(tmp_path: Path, label_studio: Web) -> None:
    label_studio.answers["/data/upload/2/a.png"] = Response("", 302, {"Location": "/api/projects/2/next"})
    label_studio.answers["/api/projects/2/next"] = Response(API, content_type="application/json")
    with pytest.raises(ImageError):
        store_of(tmp_path, label_studio.url).digest("/data/upload/2/a.png")
    assert label_studio.authorizations == [f"Token {KEY}", None]


def test_an_address_without_bounds_is_not_asked(tmp_path: Path, label_studio: Web) -> None:
    """10,000 addresses are remembered."""
    for address in ("/data/upload/" + "a" * 10**6, f"{label_studio.url}/data/upload/" + "a" * 10**6):
        with pytest.raises(ImageMissingError, match="characters"):
            store_of(tmp_path, label_studio.url).digest(address)
    assert label_studio.asked == []


@pytest.mark.parametrize("answer", [API, "<html></html>", "%PDF-1.4", "", "GIF89a"])
def test_what_comes_back_must_be_a_picture(tmp_path: Path, label_studio: Web, answer: str) -> None:
    label_studio.answers["/data/upload/2/a.png"] = Response(answer, content_type="image/png")
    with pytest.raises(ImageError):
        store_of(tmp_path, label_studio.url).digest("/data/upload/2/a.png")
    assert list(tmp_path.rglob("*")) == [], "nothing is kept"


NOT_GLOBAL = [
    "fec0::/10", "::ffff:0:0/96", "::/96", "fc00::/7", "fe80::/10", "ff00::/8", "100::/64", "64:ff9b:1::/48",
    "2001::/32", "2001:2::/48", "2001:10::/28", "2001:20::/28", "2001:db8::/32", "2002::/16", "3fff::/20",
    "5f00::/16", "4000::/3", "0200::/7", "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8",
    "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16",
    "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32",
]  # fmt: skip


@pytest.mark.parametrize("network", NOT_GLOBAL)
def test_any_public_host_is_none_in_a_network_that_is_not_global(network: str) -> None:
    """By the first, a middle and the last address, and for IPv4 in every IPv6 form that carries it."""
    found = ip_network(network)
    places = {0, found.num_addresses // 2, found.num_addresses - 1}
    for address in (found[place] for place in places):
        for written in (address, *carriers(address)):
            assert refusal(str(written), public_only=True), written


def carriers(address: IPv4Address | IPv6Address) -> list[IPv6Address]:
    if isinstance(address, IPv6Address):
        return []
    value = int(address)
    forms = ("::ffff:0:0", "64:ff9b::", "64:ff9b:1::", "::")
    return [IPv6Address(int(IPv6Address(form)) | value) for form in forms] + [
        IPv6Address(0x2002 << 112 | value << 80),
        IPv6Address(0x20010000 << 96 | (value ^ 0xFFFFFFFF)),
    ]


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "2a00:1450::1", "64:ff9b::8.8.8.8"])
def test_global_addresses_are_allowed(address: str) -> None:
    assert refusal(address, public_only=True) == ""


def test_a_folder_that_becomes_a_link_is_never_followed(tmp_path: Path) -> None:
    """Some hundred tries were enough to read outside of the root."""
    root, inside, outside = tmp_path / "root", tmp_path / "root" / "folder", tmp_path / "outside"
    for folder, content in ((inside, b"inside"), (outside, b"secret")):
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(content)
    link, kept, ended = root / "link", root / "kept", Event()
    link.symlink_to(outside)

    def swap() -> None:
        while not ended.is_set():
            for source, target in ((inside, kept), (link, inside), (inside, link), (kept, inside)):
                os.rename(source, target)

    swapping = Thread(target=swap)
    swapping.start()
    answers = set()
    try:
        for _ in range(1500):
            try:
                answers.add(read_local(f"file://{root}/folder/a.png", [root], 100))
            except ImageError as error:
                answers.add(type(error).__name__.encode())
    finally:
        ended.set()
        swapping.join()
    assert b"secret" not in answers
    assert b"inside" in answers


def test_links_within_the_root_are_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "a.png").write_bytes(b"inside")
    (root / "folder").symlink_to("deep")
    (root / "absolute").symlink_to(root / "deep" / "a.png")
    for path in ("folder/a.png", "absolute", "deep/../folder/a.png"):
        assert read_local(f"file://{root}/{path}", [root], 100) == b"inside"
    with pytest.raises(ImageMissingError):
        read_local(f"file://{root}", [root], 100)
