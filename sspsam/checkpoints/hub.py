"""Downloads of large files over HTTP: resumed, verified, and moved into place only when complete.

Proxies, certificates and .netrc come from the environment, as usual with requests (HTTPS_PROXY, NO_PROXY,
REQUESTS_CA_BUNDLE).

Errors:
    DownloadError                 interrupted too often; partial content is kept, and the next attempt resumes
        ProxyRefusedError         the proxy of the environment is unreachable or refuses
        AccessRefusedError        the server answered 401, 403 or another refusal
        MissingError              the server or the mirror has no such file
        DiskFullError             partial content is kept
        WrongContentError         not the requested file; nothing is kept
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import requests
from requests import codes
from requests.auth import AuthBase
from requests.exceptions import ChunkedEncodingError, ProxyError

from sspsam.files import sha256_of_file, sync_folder

Progress = Callable[[int, int | None], None]
"""Called with the bytes received and, if known, the size."""

CONNECT_TIMEOUT_S = 15.0
READ_TIMEOUT_S = 60.0
"""Time without data."""
ATTEMPTS = 5
"""Consecutive attempts without progress."""
PAUSE_S = 1.0
"""After the first of these; doubled each time."""
CHUNK_BYTES = 1 << 16
"""Maximum loss when a connection breaks."""
POINTER = b"version https://git-lfs.github.com/spec/"
"""Start of a Git LFS pointer: what a repository contains in place of a large file."""
WEB_PAGE = (b"<!doctype html", b"<html")
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_START_BYTES = 64
_MISSING = {codes.not_found, codes.gone}
_WORTH_TRYING_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_SIZE = re.compile(r"[0-9]{1,18}")
_CONTENT_RANGE = re.compile(r"bytes (?:(?P<start>[0-9]{1,18})-[0-9]{1,18}|\*)/(?P<total>[0-9]{1,18}|\*)")


class DownloadError(Exception):
    """A file could not be downloaded."""


class ProxyRefusedError(DownloadError):
    """The configured proxy does not connect to the server."""


class AccessRefusedError(DownloadError):
    """The server refuses access to the file."""


class MissingError(DownloadError):
    """There is no such file."""


class DiskFullError(DownloadError):
    """The file does not fit on the disk."""


class WrongContentError(DownloadError):
    """The downloaded content is not the requested one."""


class _BrokenOffError(Exception):
    """An attempt failed in a way that may be temporary."""


class BearerToken(AuthBase):
    """Sends an access token to the requested host; requests drops it when redirected to another."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def download(
    url: str,
    target: Path,
    sha256: str | None = None,
    size_bytes: int | None = None,
    progress: Progress = lambda done, total: None,
    pause_s: float = PAUSE_S,
    token: str = "",
) -> str:
    """Downloads a file.

    Data is collected next to the target, in `.<name>.part`. With a sha256, a later call resumes it; without
    one, the server's file may have changed, and a later call starts over.

    Args:
        url: http or https.
        target: destination; an existing file is replaced when the download is complete.
        sha256: expected digest, in hex.
        size_bytes: expected size, for progress and disk space.
        progress: called as bytes arrive.
        pause_s: before the second attempt.
        token: access token for the URL's host.

    Returns:
        Its sha256.

    Raises:
        DownloadError, WrongContentError: see the module.
    """
    with requests.Session() as session, _full_disk(target.parent), _unfinished(target, url) as file:
        session.auth = BearerToken(token) if token else None
        if sha256 is None:
            file.truncate(0)
        _check_space(target.parent, (size_bytes or 0) - _length(file))
        transfer = _Transfer(session, url, file, size_bytes, progress, pause_s)
        resumed = _length(file) > 0
        transfer.run()
        if resumed and _sha256(file) != sha256:  # the existing part belongs to another file
            file.truncate(0)
            transfer.run()
        return _put_in_place(file, target, sha256, url)


def place_copy(source: Path, target: Path, sha256: str | None = None) -> str:
    """Copies a file of this machine, with the same checks.

    Returns:
        Its sha256.

    Raises:
        MissingError: there is no such file.
        DiskFullError: it does not fit.
        WrongContentError: it is another file.
    """
    if not source.is_file():
        raise MissingError(f"there is no file {source}")
    with _full_disk(target.parent), _unfinished(target, str(source)) as file, source.open("rb") as original:
        file.truncate(0)
        _check_space(target.parent, source.stat().st_size)
        shutil.copyfileobj(original, file, CHUNK_BYTES)
        return _put_in_place(file, target, sha256, str(source))


@dataclass
class _Transfer:
    """Fills a file from a URL."""

    session: requests.Session
    url: str
    file: BinaryIO
    size_bytes: int | None
    progress: Progress
    pause_s: float
    etag: str = ""
    """The server's ETag of the content received so far."""

    def run(self) -> None:
        """Retries; an attempt that makes progress resets the count."""
        failures = 0
        while True:
            before = _length(self.file)
            try:
                return self._attempt()
            except (
                requests.ConnectionError,
                requests.Timeout,
                ChunkedEncodingError,
                _BrokenOffError,
            ) as error:
                kind = ProxyRefusedError if isinstance(error, ProxyError) else DownloadError
                reason = f"{type(error).__name__}: {error}"
            except requests.RequestException as error:
                raise DownloadError(f"{self.url} cannot be requested: {error}") from error
            here = _length(self.file)
            failures = 1 if here > before else failures + 1
            if failures >= ATTEMPTS:
                raise kind(
                    f"{self.url} failed {failures} times in a row, {here} bytes are stored; last error: "
                    f"{reason}"
                )
            time.sleep(self.pause_s * 2 ** (failures - 1))

    def _attempt(self) -> None:
        """Requests the missing part, and writes it."""
        have = _length(self.file)
        headers = {"Accept-Encoding": "identity"}  # a compressed response could not be resumed
        if have:
            headers["Range"] = f"bytes={have}-"
            if self.etag:
                headers["If-Range"] = self.etag
        timeout = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
        with self.session.get(self.url, headers=headers, stream=True, timeout=timeout) as response:
            start, total = self._place(response, have)
            self.file.truncate(start)
            _check_space(Path(self.file.name).parent, (total or 0) - start)
            etag = response.headers.get("ETag", "")
            self.etag = "" if etag.startswith("W/") else etag
            if start != total:
                self._write(response, start, total)

    def _write(self, response: requests.Response, start: int, total: int | None) -> None:
        done = start
        self.progress(done, total or self.size_bytes)
        for chunk in response.iter_content(CHUNK_BYTES):
            self.file.write(chunk)
            done += len(chunk)
            if self.size_bytes is not None and done > self.size_bytes:
                self.file.truncate(0)
                raise WrongContentError(f"{self.url} has more than the expected {self.size_bytes} bytes")
            self.progress(done, total or self.size_bytes)
        self.file.flush()
        if total is not None and done != total:
            raise _BrokenOffError(f"received {done} of {total} bytes")

    def _place(self, response: requests.Response, have: int) -> tuple[int, int | None]:
        """Offset of the response's bytes in the file, and the total size."""
        status = response.status_code
        if status == codes.ok:
            return 0, stated_size(response, "Content-Length")
        if status in _WORTH_TRYING_AGAIN:
            raise _BrokenOffError(f"the server answered {status} {response.reason}")
        if status in _MISSING:
            raise MissingError(f"{response.url} does not exist: {status} {response.reason}")
        if status not in (codes.partial_content, codes.requested_range_not_satisfiable):
            raise AccessRefusedError(f"{response.url} was refused: {status} {response.reason}")
        place = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        total = int(place["total"]) if place and place["total"] != "*" else None
        if status == codes.partial_content and place and place["start"] == str(have):
            return have, total
        if status == codes.requested_range_not_satisfiable and have == total:
            return have, total
        self.file.truncate(0)  # the stored part does not match the server's file
        raise _BrokenOffError(f"the server sent other bytes than {have}-")


def stated_size(response: requests.Response, header: str) -> int | None:
    """A number of bytes in a response's header; None if it states none."""
    text = response.headers.get(header, "")
    return int(text) if _SIZE.fullmatch(text) else None


def _put_in_place(file: BinaryIO, target: Path, sha256: str | None, source: str) -> str:
    found = _sha256(file)
    part = Path(file.name)
    if instead := _known_substitute(part):
        part.unlink()
        raise WrongContentError(f"{source} is {instead}, not the file")
    if sha256 is not None and found != sha256:
        part.unlink()
        raise WrongContentError(f"{source} is not the expected file: sha256 {found}, not {sha256}")
    os.fsync(file.fileno())
    part.replace(target)
    sync_folder(target.parent)
    return found


def _known_substitute(path: Path) -> str:
    """What was received in place of the file, if it is one of the usual replacements."""
    with path.open("rb") as file:
        start = file.read(_START_BYTES)
    if start.startswith(POINTER):
        return "a Git LFS pointer"
    return "a web page" if start.lstrip().lower().startswith(WEB_PAGE) else ""


def _sha256(file: BinaryIO) -> str:
    file.flush()
    return sha256_of_file(Path(file.name))


def _length(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFullError(f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed")


@contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    """Names a disk that becomes full, or a reached quota, instead of the system call."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DiskFullError(
            f"{folder} is full or its quota is reached ({error.strerror}); what was received is kept"
        ) from error


@contextmanager
def _unfinished(target: Path, source: str) -> Iterator[BinaryIO]:
    """Opens the partial file exclusively for this process."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = part.samefile(f"/dev/fd/{file.fileno()}")
        except (BlockingIOError, FileNotFoundError):
            ours = False  # in use, or just moved into place
        if not ours:
            raise DownloadError(f"another process is downloading {source} to {target.parent}")
        yield file
