"""Servers of weights that answer oddly: a clear error, no more of the disk than expected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.wrappers import Response

from sspsam.checkpoints.files import WeightsFolder
from sspsam.checkpoints.hub import CHUNK_BYTES, DownloadError, WrongContentError, download
from sspsam.checkpoints.registry import HUB, HUB_REPOSITORY, find_public_file
from tests.backend.web_server import Web

ODD_NUMBERS = ("9" * 5000, "-1", "1e9", "\u0663", "x", "")


@pytest.fixture
def server() -> Iterator[Web]:
    with Web() as running:
        yield running


def test_a_server_that_sends_too_much_is_stopped(server: Web, tmp_path: Path) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(10_000):
            sent += CHUNK_BYTES
            yield b"x" * CHUNK_BYTES

    server.answers["/w.pt"] = lambda _: Response(endless())
    with pytest.raises(WrongContentError, match="more than the expected 3000 bytes"):
        download(f"{server.url}/w.pt", tmp_path / "w.pt", "0" * 64, 3000, pause_s=0)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0
    assert sent < 1000 * CHUNK_BYTES


@pytest.mark.parametrize("number", ODD_NUMBERS)
@pytest.mark.parametrize("status", [200, 206, 416])
def test_odd_sizes_are_no_errors_of_ours(server: Web, tmp_path: Path, number: str, status: int) -> None:
    ranges = f"bytes 0-{number}/{number}".encode().decode("latin-1")

    def answer(_: object) -> Response:
        response = Response(b"content", status, headers={"Content-Range": ranges})
        response.headers["X-Linked-Size"] = number.encode().decode("latin-1")
        return response

    folder = WeightsFolder(tmp_path, hub=server.url, pause_s=0)
    file = find_public_file("hub:w.pth")
    server.answers[file.url.removeprefix(HUB)] = answer
    assert folder.missing_bytes(file) in (None, len(b"content"))
    if status == 200:
        folder.pull(file)
        assert folder.path(file).read_bytes() == b"content"
    else:
        with pytest.raises(DownloadError):
            folder.pull(file)


@pytest.mark.parametrize(
    "listing",
    [
        "",
        "[]",
        "null",
        "{}",
        "[" * 100_000,
        json.dumps({"siblings": [{}]}),
        json.dumps({"siblings": [{"rfilename": 5}]}),
        json.dumps({"siblings": [{"rfilename": "w.pth", "size": "x"}]}),
        json.dumps({"siblings": [{"rfilename": "w.pth", "lfs": [1]}]}),
    ],
)
def test_an_odd_listing_of_the_hub_is_a_clear_error(server: Web, tmp_path: Path, listing: str) -> None:
    server.answers[f"/api/models/{HUB_REPOSITORY}"] = Response(listing, content_type="application/json")
    with pytest.raises(DownloadError, match="the list of files is not available"):
        WeightsFolder(tmp_path, hub=server.url).hub_files()


@pytest.mark.parametrize("path", ["../../w.pth", "/etc/w.pth", "a/../../w.pth", "..\\w.pth", "%2e%2e/w.pth"])
def test_no_name_on_the_hub_leaves_the_folder(server: Web, tmp_path: Path, path: str) -> None:
    listing = json.dumps({"siblings": [{"rfilename": path}]})
    server.answers[f"/api/models/{HUB_REPOSITORY}"] = Response(listing, content_type="application/json")
    folder = WeightsFolder(tmp_path, hub=server.url)
    [file] = folder.hub_files()
    assert folder.path(file).resolve().parent == tmp_path.resolve()
