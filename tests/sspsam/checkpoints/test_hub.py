"""Downloads: resumed, verified, and atomic. Against a real HTTP server."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sspsam.checkpoints.hub import (
    ATTEMPTS,
    CHUNK_BYTES,
    DownloadError,
    WrongContentError,
    download,
    place_copy,
)
from tests.sspsam.file_server import Behaviour, FileServer

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = np.random.default_rng(1).bytes(3_000_000)
SOME = 10 * CHUNK_BYTES


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as running:
        yield running


def part_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def test_a_file_comes_whole(server: FileServer, tmp_path: Path) -> None:
    server.files["/w.pt"] = Behaviour(CONTENT)
    seen: list[tuple[int, int | None]] = []
    target = tmp_path / "new" / "w.pt"
    found = download(f"{server.url}/w.pt", target, SHA256, progress=lambda *here: seen.append(here))
    assert found == SHA256
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]
    assert (seen[0], seen[-1]) == ((0, len(CONTENT)), (len(CONTENT), len(CONTENT)))


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_a_broken_connection_is_resumed(server: FileServer, tmp_path: Path, sha256: str | None) -> None:
    server.files["/w.pt"] = Behaviour(CONTENT, breaks_after=[2 * SOME, SOME])
    download(f"{server.url}/w.pt", tmp_path / "w.pt", sha256, pause_s=0)
    assert (tmp_path / "w.pt").read_bytes() == CONTENT
    assert server.ranges("/w.pt") == [None, f"bytes={2 * SOME}-", f"bytes={3 * SOME}-"]


def test_a_later_call_goes_on(server: FileServer, tmp_path: Path) -> None:
    target = tmp_path / "w.pt"
    server.files["/w.pt"] = Behaviour(CONTENT, breaks_after=[SOME + 1] + [0] * ATTEMPTS)
    with pytest.raises(DownloadError, match=rf"{ATTEMPTS} times.* {SOME} bytes"):
        download(f"{server.url}/w.pt", target, SHA256, pause_s=0)
    assert not target.exists()
    assert part_of(target).read_bytes() == CONTENT[:SOME]
    server.files["/w.pt"].breaks_after.clear()
    server.asked.clear()
    download(f"{server.url}/w.pt", target, SHA256)
    assert target.read_bytes() == CONTENT
    assert server.ranges("/w.pt") == [f"bytes={SOME}-"]


def test_a_later_call_without_a_hash_begins_again(server: FileServer, tmp_path: Path) -> None:
    part_of(tmp_path / "w.pt").write_bytes(OTHER[:1_000_000])
    server.files["/w.pt"] = Behaviour(CONTENT)
    assert download(f"{server.url}/w.pt", tmp_path / "w.pt") == SHA256
    assert server.ranges("/w.pt") == [None]


def test_servers_without_ranges(server: FileServer, tmp_path: Path) -> None:
    server.files["/w.pt"] = Behaviour(CONTENT, breaks_after=[SOME], ranges=False)
    download(f"{server.url}/w.pt", tmp_path / "w.pt", SHA256, pause_s=0)
    assert (tmp_path / "w.pt").read_bytes() == CONTENT
    assert server.ranges("/w.pt") == [None, f"bytes={SOME}-"]


def test_a_file_that_changes_meanwhile_begins_again(server: FileServer, tmp_path: Path) -> None:
    server.files["/w.pt"] = Behaviour(OTHER, breaks_after=[SOME], changes_to=CONTENT)
    assert download(f"{server.url}/w.pt", tmp_path / "w.pt", pause_s=0) == SHA256


@pytest.mark.parametrize(
    "left",
    [OTHER[:1_000_000], OTHER, OTHER + b"more", CONTENT],
    ids=["a part", "as long", "longer", "all of it"],
)
def test_what_lay_there_may_be_anything(server: FileServer, tmp_path: Path, left: bytes) -> None:
    part_of(tmp_path / "w.pt").write_bytes(left)
    server.files["/w.pt"] = Behaviour(CONTENT)
    download(f"{server.url}/w.pt", tmp_path / "w.pt", SHA256, pause_s=0)
    assert (tmp_path / "w.pt").read_bytes() == CONTENT


def test_the_wrong_content_is_not_kept(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"as before")
    server.files["/w.pt"] = Behaviour(OTHER)
    with pytest.raises(WrongContentError, match=f"{hashlib.sha256(OTHER).hexdigest()}.*{SHA256}"):
        download(f"{server.url}/w.pt", tmp_path / "w.pt", SHA256)
    assert (tmp_path / "w.pt").read_bytes() == b"as before"
    assert not part_of(tmp_path / "w.pt").exists()


def test_what_is_not_there_is_said_at_once(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"/none\.pt.*404"):
        download(f"{server.url}/none.pt", tmp_path / "w.pt", SHA256)
    assert len(server.asked) == 1
    assert not (tmp_path / "w.pt").exists()


def test_a_busy_server_is_asked_again(server: FileServer, tmp_path: Path) -> None:
    server.files["/w.pt"] = Behaviour(CONTENT, failures=[503, 429])
    download(f"{server.url}/w.pt", tmp_path / "w.pt", SHA256, pause_s=0)
    server.files["/w.pt"] = Behaviour(CONTENT, failures=[500] * ATTEMPTS)
    with pytest.raises(DownloadError, match="500"):
        download(f"{server.url}/w.pt", tmp_path / "w2.pt", SHA256, pause_s=0)


def test_nobody_answers(tmp_path: Path) -> None:
    with FileServer() as server:
        url = server.url
    with pytest.raises(DownloadError, match=f"{ATTEMPTS} times"):
        download(f"{url}/w.pt", tmp_path / "w.pt", SHA256, pause_s=0)
    with pytest.raises(DownloadError, match=r"weights\.example\.com"):
        download("weights.example.com/w.pt", tmp_path / "w.pt", SHA256)


def test_proxies_of_the_environment(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    server.files["/models/w.pt"] = Behaviour(CONTENT)
    download("http://weights.invalid/models/w.pt", tmp_path / "w.pt", SHA256)
    assert (tmp_path / "w.pt").read_bytes() == CONTENT


def test_one_process_at_a_time(server: FileServer, tmp_path: Path) -> None:
    server.files["/w.pt"] = Behaviour(CONTENT)
    with part_of(tmp_path / "w.pt").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="another process is downloading"):
            download(f"{server.url}/w.pt", tmp_path / "w.pt", SHA256)


def test_a_full_disk_is_said_before(server: FileServer, tmp_path: Path) -> None:
    server.files["/w.pt"] = Behaviour(CONTENT)
    with pytest.raises(DownloadError, match=r"1000000000\.0 GB"):
        download(f"{server.url}/w.pt", tmp_path / "w.pt", SHA256, size_bytes=10**18)
    assert server.asked == []


def test_copies_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "mirror.pt").write_bytes(CONTENT)
    assert place_copy(tmp_path / "mirror.pt", tmp_path / "here" / "w.pt", SHA256) == SHA256
    assert (tmp_path / "here" / "w.pt").read_bytes() == CONTENT
    (tmp_path / "mirror.pt").write_bytes(OTHER)
    with pytest.raises(WrongContentError):
        place_copy(tmp_path / "mirror.pt", tmp_path / "here" / "w2.pt", SHA256)
    with pytest.raises(DownloadError, match=r"none\.pt"):
        place_copy(tmp_path / "none.pt", tmp_path / "here" / "w2.pt", SHA256)
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["w.pt"]
