"""Failed downloads of public weights: each message says what to do. The server acts as the hub does."""

from __future__ import annotations

import errno
import hashlib
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sspsam.checkpoints import hub
from sspsam.checkpoints.files import OWN, WeightsFolder
from sspsam.checkpoints.hub import (
    AccessRefusedError,
    DiskFullError,
    DownloadError,
    MissingError,
    ProxyRefusedError,
    WrongContentError,
)
from sspsam.checkpoints.registry import HUB_REPOSITORY, PublicFile, find_public_file
from sspsam.cli import build_app
from tests.sspsam.file_server import Behaviour, FileServer

CONTENT = np.random.default_rng(0).bytes(400_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SOME = 2 * hub.CHUNK_BYTES
FILE = find_public_file("ssp-sam-224-grefcoco")
PATH = f"/{HUB_REPOSITORY}/resolve/main/output/grefcoco/224/checkpoint_best_miou.pth"
BY_HAND = r"sspsam weights pull ssp-sam-224-grefcoco --file PATH"
PAGE = f"https://huggingface.co/{HUB_REPOSITORY}"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as running:
        yield running


@pytest.fixture
def folder(server: FileServer, tmp_path: Path) -> WeightsFolder:
    return WeightsFolder(tmp_path / "weights", hub=server.url, pause_s=0, token="hf_secret")


def test_the_hub_redirects_to_another_host_which_does_not_get_the_token(
    server: FileServer, folder: WeightsFolder
) -> None:
    with FileServer() as cdn:
        server.files[PATH] = Behaviour(CONTENT, hub=True, elsewhere=cdn.url)
        cdn.files[PATH] = Behaviour(CONTENT, breaks_after=[SOME], failures=[502])
        record = folder.pull(FILE)
        assert cdn.ranges(f"/cdn{PATH}") == [None, None, f"bytes={SOME}-"]
        assert set(cdn.tokens) == {None}
    assert set(server.tokens) == {"Bearer hf_secret"}
    assert record.sha256 == SHA256
    assert folder.path(FILE).read_bytes() == CONTENT


def test_a_server_that_fails_in_the_middle_is_resumed(server: FileServer, folder: WeightsFolder) -> None:
    server.files[PATH] = Behaviour(CONTENT, hub=True, breaks_after=[SOME, SOME], failures=[503])
    folder.pull(FILE)
    assert folder.path(FILE).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (401, AccessRefusedError, f"{PAGE}, set HF_TOKEN .*{BY_HAND}"),
        (403, AccessRefusedError, f"{PAGE}, set HF_TOKEN .*{BY_HAND}"),
        (451, AccessRefusedError, BY_HAND),
        (404, MissingError, f"may have moved: see {PAGE}.*{BY_HAND}"),
        (410, MissingError, f"may have moved: see {PAGE}.*{BY_HAND}"),
    ],
)
def test_a_refusal_is_explained(
    server: FileServer, folder: WeightsFolder, status: int, kind: type[DownloadError], expected: str
) -> None:
    server.files[PATH] = Behaviour(CONTENT, status=status)
    with pytest.raises(kind, match=rf"{status} .*{expected}"):
        folder.pull(FILE)
    assert not folder.path(FILE).exists()


def test_a_server_that_keeps_failing_is_explained(server: FileServer, folder: WeightsFolder) -> None:
    server.files[PATH] = Behaviour(CONTENT, hub=True, failures=[500] * 20)
    with pytest.raises(DownloadError, match=rf"500.*resumes.*--mirror FOLDER\|URL.*{BY_HAND}"):
        folder.pull(FILE)


def test_no_network(tmp_path: Path) -> None:
    with FileServer() as server:
        gone = server.url
    folder = WeightsFolder(tmp_path, hub=gone, pause_s=0)
    for ask in (folder.pull, folder.missing_bytes):
        with pytest.raises(
            DownloadError, match=rf"Check the network, HTTPS_PROXY.*--mirror.*{BY_HAND}"
        ) as caught:
            ask(FILE)
        assert str(caught.value).count("Check the network") == 1


@pytest.mark.parametrize("name", ["ssp-sam-224-grefcoco", "mobile-sam"])
def test_a_proxy_that_does_not_answer_or_refuses(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with FileServer() as stopped:
        gone = stopped.url
    for proxy in (gone, server.url):  # the server answers CONNECT with 501
        monkeypatch.setenv("https_proxy", proxy)
        with pytest.raises(ProxyRefusedError, match=r"Check HTTPS_PROXY and NO_PROXY.*--file PATH"):
            WeightsFolder(tmp_path, pause_s=0).pull(find_public_file(name))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (POINTER, "a Git LFS pointer"),
        (b"<!DOCTYPE html><title>Log in</title>", "a web page"),
        (b"\n <html>sign in</html>", "a web page"),
    ],
)
@pytest.mark.parametrize("from_mirror", [False, True])
def test_what_stands_in_for_a_file_is_recognised(
    server: FileServer, tmp_path: Path, content: bytes, what: str, from_mirror: bool
) -> None:
    """Without a sha256 to compare with, it would be recorded as the file."""
    server.files[PATH] = Behaviour(content)
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / FILE.file_name).write_bytes(content)
    folder = WeightsFolder(tmp_path / "weights", str(mirror) if from_mirror else "", server.url, 0)
    with pytest.raises(WrongContentError, match=rf"is {what}, not the file\..*{PAGE}"):
        folder.pull(FILE)
    assert [path.name for path in folder.folder.iterdir()] == []


def test_another_content_than_stated(server: FileServer, folder: WeightsFolder) -> None:
    server.files["/mine.pt"] = Behaviour(b"something")
    file = PublicFile("mine", "", f"{server.url}/mine.pt", "MIT", 9, SHA256, "its author", "https://page")
    with pytest.raises(WrongContentError, match=r"sha256 .*A proxy may have replaced it.*https://page"):
        folder.pull(file)


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Limits the size of this process's files, which fails as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_becomes_full_keeps_what_was_received(server: FileServer, folder: WeightsFolder) -> None:
    server.files[PATH] = Behaviour(CONTENT, hub=True)
    with largest_file(SOME), pytest.raises(DiskFullError, match=r"is kept\. Free some space.*MODEL_DIR"):
        folder.pull(FILE)
    server.asked.clear()
    folder.pull(FILE)
    (asked,) = [wanted for wanted in server.ranges(f"/cdn{PATH}")]
    assert asked is not None
    assert int(asked.removeprefix("bytes=").rstrip("-")) > 0
    assert folder.path(FILE).read_bytes() == CONTENT


def test_a_file_that_will_not_fit_is_refused_before_it_is_received(
    server: FileServer, folder: WeightsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files[PATH] = Behaviour(CONTENT, hub=True)
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100_000})())
    with pytest.raises(DiskFullError, match=r"0\.0 GB are needed\. Free some space"):
        folder.pull(FILE)


def test_other_errors_of_the_disk_keep_their_name(server: FileServer, tmp_path: Path) -> None:
    server.files[PATH] = Behaviour(CONTENT)
    (tmp_path / "weights").write_text("a file where the folder is to be")
    with pytest.raises(OSError, match=r"File exists|Not a directory") as caught:
        WeightsFolder(tmp_path / "weights", hub=server.url, pause_s=0).pull(FILE)
    assert caught.value.errno in (errno.EEXIST, errno.ENOTDIR)


def test_sizes_that_only_the_hub_knows(server: FileServer, folder: WeightsFolder, tmp_path: Path) -> None:
    with FileServer() as cdn:
        server.files[PATH] = Behaviour(CONTENT, hub=True, elsewhere=cdn.url)
        cdn.files[PATH] = Behaviour(CONTENT)
        assert folder.missing_bytes(FILE) == len(CONTENT)
        part = folder.path(FILE).with_name(f".{FILE.file_name}.part")
        part.parent.mkdir()
        part.write_bytes(CONTENT[:1000])
        assert folder.missing_bytes(FILE) == len(CONTENT) - 1000
        folder.pull(FILE)
    assert folder.missing_bytes(FILE) == 0
    server.files.clear()
    folder.path(FILE).unlink()
    assert folder.missing_bytes(FILE) is None
    (tmp_path / FILE.file_name).write_bytes(CONTENT)
    assert WeightsFolder(tmp_path / "other", str(tmp_path)).missing_bytes(FILE) == len(CONTENT)


def pull(*arguments: str) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(build_app(), ["weights", "pull", *arguments])
    return result.exit_code, result.output, result.exception


def test_a_file_of_ones_own_takes_the_place_of_a_download(tmp_path: Path) -> None:
    own = tmp_path / "mine.pth"
    own.write_bytes(CONTENT)
    where = ("--model-dir", str(tmp_path))
    code, output, _ = pull(FILE.name, "--file", str(own), *where)
    assert (code, OWN in output) == (0, True)
    folder = WeightsFolder(tmp_path / "weights")
    assert folder.verify(FILE) == "good"
    assert folder.pull(FILE).sha256 == SHA256  # without a request
    code, _, error = pull("mobile-sam", "--file", str(own), *where)
    assert code != 0
    assert isinstance(error, WrongContentError)
    assert "sspsam weights convert" in str(error)
    own.write_bytes(POINTER)
    assert isinstance(pull(FILE.name, "--file", str(own), *where)[2], WrongContentError)
    assert folder.verify(FILE) == "good"
    assert pull("mobile-sam", "sam-vit-b", "--file", str(own), *where)[0] == 2
