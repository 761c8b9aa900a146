"""Public weights on this machine: downloaded files, each with a record of its verification."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import requests
from pydantic import TypeAdapter, ValidationError

from sspsam.checkpoints.hub import (
    CONNECT_TIMEOUT_S,
    PAUSE_S,
    READ_TIMEOUT_S,
    AccessRefusedError,
    BearerToken,
    DiskFullError,
    DownloadError,
    MissingError,
    Progress,
    ProxyRefusedError,
    WrongContentError,
    download,
    place_copy,
    stated_size,
)
from sspsam.checkpoints.registry import (
    HUB,
    HUB_REPOSITORY,
    PUBLIC_FILES,
    PublicFile,
    Record,
    find_public_file,
    hub_file,
    record_path,
)
from sspsam.files import replace_text, sha256_of_file

Condition = Literal["good", "damaged", "absent", "unknown"]
"""`unknown`: there is no sha256 to compare with."""

WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
RECORDED = "unpublished: recorded at the first download"
OWN = "the operator's file"
_SHA256_LENGTH = 64


@dataclass(frozen=True)
class _LargeFile:
    sha256: str | None = None


@dataclass(frozen=True)
class _HubFile:
    rfilename: str
    size: int | None = None
    lfs: _LargeFile | None = None


@dataclass(frozen=True)
class _Listing:
    """The hub's answer about a repository, as far as it matters here."""

    siblings: list[_HubFile]


_LISTING = TypeAdapter(_Listing)


class WeightsFolder:
    """Downloaded files. The constructor opens nothing.

    Args:
        folder: their folder.
        mirror: a folder or URL with the files under their local names, used instead of the internet.
        hub: URL of the Hugging Face hub, or of a mirror of it (HF_ENDPOINT).
        pause_s: between attempts.
        token: access token of the hub (HF_TOKEN), sent to it alone.
    """

    def __init__(
        self, folder: Path, mirror: str = "", hub: str = HUB, pause_s: float = PAUSE_S, token: str = ""
    ) -> None:
        self.folder = folder
        self._mirror = mirror
        self._hub = hub.rstrip("/")
        self._pause_s = pause_s
        self._token = token

    def path(self, file: PublicFile) -> Path:
        """Path of a file, whether or not it exists."""
        return self.folder / file.file_name

    def record(self, file: PublicFile) -> Record | None:
        """Record of a downloaded file; None if it was not downloaded."""
        return Record.read(record_path(self.path(file))) if self.path(file).is_file() else None

    def pull(self, file: PublicFile, progress: Progress = lambda done, total: None) -> Record:
        """Downloads a file, unless it is already present and valid.

        The expected sha256 is the published one; else the one stated by the hub; else that of an earlier
        download.

        Raises:
            DownloadError: it is unavailable; the message says what to do.
            WrongContentError: another file was received; likewise.
        """
        if self.verify(file) == "good":
            return self.record(file) or self._note(
                file, "already present", str(file.sha256), file.sha256_from
            )
        try:
            return self._fetch(file, progress)
        except DownloadError as error:
            raise type(error)(f"{error}. {_advice(file, error)}") from error

    def place(self, file: PublicFile, path: Path) -> Record:
        """Copies a file of the operator in place of a download, as a published file under its name.

        Raises:
            DownloadError: it cannot be copied.
            WrongContentError: it is not the published file, where the sha256 of that one is known.
        """
        try:
            found = place_copy(path, self.path(file), file.sha256)
        except WrongContentError as error:
            raise WrongContentError(
                f"{error}. The table knows the sha256 of {file.name}; convert a file of another content with "
                "`sspsam weights convert`"
            ) from error
        return self._note(file, str(path), found, file.sha256_from if file.sha256 else OWN)

    def missing_bytes(self, file: PublicFile) -> int | None:
        """Size of what is still to be downloaded; None if only the server knows, and does not say.

        Raises:
            DownloadError: the server cannot be reached; the message says what to do.
        """
        if self.path(file).is_file():
            return 0
        part = self.path(file).with_name(f".{self.path(file).name}.part")
        here = part.stat().st_size if part.is_file() else 0
        try:
            size = file.size_bytes or self._stated_size(file)
        except DownloadError as error:
            raise type(error)(f"{error}. {_advice(file, error)}") from error
        return None if size is None else max(size - here, 0)

    def _stated_size(self, file: PublicFile) -> int | None:
        if self._mirror and not _is_address(self._mirror):
            source = Path(self._address(file))
            return source.stat().st_size if source.is_file() else None
        for answer in reversed(self._ask(file)):
            for header in ("X-Linked-Size", "Content-Length"):
                if answer.ok and (size := stated_size(answer, header)):
                    return size
        return None

    def _fetch(self, file: PublicFile, progress: Progress) -> Record:
        sha256, sha256_from = self._expected(file)
        target, came_from = self.path(file), self._address(file)
        if self._mirror and not _is_address(self._mirror):
            found = place_copy(Path(came_from), target, sha256)
        else:
            found = download(
                came_from,
                target,
                sha256,
                file.size_bytes,
                progress=progress,
                pause_s=self._pause_s,
                token=self._token_for(file),
            )
        return self._note(file, came_from, found, sha256_from)

    def verify(self, file: PublicFile) -> Condition:
        """Compares a file with its published sha256 or, if there is none, with that of its download."""
        path, record = self.path(file), self.record(file)
        if not path.is_file():
            return "absent"
        expected = file.sha256 or (record.sha256 if record else None)
        if expected is None:
            return "unknown"
        return "good" if sha256_of_file(path) == expected else "damaged"

    def files(self) -> list[PublicFile]:
        """The table, and other downloaded files of the authors' repository."""
        known = {file.file_name for file in PUBLIC_FILES}
        others = []
        for path in sorted(self.folder.glob("*.json")):
            record = Record.read(path)
            if record and path.stem not in known:
                others.append(find_public_file(record.name))
        return [*PUBLIC_FILES, *others]

    def hub_files(self) -> list[PublicFile]:
        """Files in the authors' repository on the hub, with the sizes and sha256 stated by the hub.

        Raises:
            DownloadError: the hub cannot be reached.
        """
        address = f"{self._hub}/api/models/{HUB_REPOSITORY}?blobs=true"
        try:
            with requests.get(address, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)) as answer:
                answer.raise_for_status()
                listing = _LISTING.validate_json(answer.content)
        except (requests.RequestException, ValidationError) as error:
            raise DownloadError(f"the list of files is not available from {address}: {error}") from error
        return [
            hub_file(entry.rfilename, size_bytes=entry.size, sha256=entry.lfs.sha256 if entry.lfs else None)
            for entry in listing.siblings
            if entry.rfilename.endswith(WEIGHT_SUFFIXES)
        ]

    def _expected(self, file: PublicFile) -> tuple[str | None, str]:
        """The expected sha256 of a download, and its source."""
        if file.sha256 is not None:
            return file.sha256, file.sha256_from
        if not self._mirror and (stated := self._stated_by_hub(file)):
            return stated, file.sha256_from
        if earlier := Record.read(record_path(self.path(file))):
            return earlier.sha256, earlier.sha256_from
        return None, RECORDED

    def _stated_by_hub(self, file: PublicFile) -> str | None:
        """The hub redirects with a header that contains the content's sha256."""
        for answer in self._ask(file):
            stated = answer.headers.get("X-Linked-ETag", "").strip('"').lower()
            if len(stated) == _SHA256_LENGTH:
                return stated
        return None

    def _ask(self, file: PublicFile) -> list[requests.Response]:
        """The server's answers about a file, redirects included.

        Raises:
            DownloadError: it cannot be reached.
        """
        token = self._token_for(file)
        try:
            with requests.head(
                self._address(file),
                allow_redirects=True,
                timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
                auth=BearerToken(token) if token else None,
            ) as last:
                return [*last.history, last]
        except requests.exceptions.ProxyError as error:
            raise ProxyRefusedError(
                f"the proxy for {self._address(file)} does not connect: {error}"
            ) from error
        except requests.RequestException as error:
            raise DownloadError(f"{self._address(file)} cannot be requested: {error}") from error

    def _token_for(self, file: PublicFile) -> str:
        return self._token if file.url.startswith(f"{HUB}/") and not self._mirror else ""

    def _note(self, file: PublicFile, came_from: str, sha256: str, sha256_from: str) -> Record:
        record = Record(
            name=file.name,
            url=file.url,
            fetched_from=came_from,
            licence=file.licence,
            size_bytes=self.path(file).stat().st_size,
            sha256=sha256,
            sha256_from=sha256_from,
            fetched_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        replace_text(record_path(self.path(file)), json.dumps(asdict(record), indent=2))
        return record

    def _address(self, file: PublicFile) -> str:
        if self._mirror and not _is_address(self._mirror):
            return str(Path(self._mirror) / file.file_name)
        if self._mirror:
            return f"{self._mirror.rstrip('/')}/{quote(file.file_name)}"
        return self._hub + file.url.removeprefix(HUB) if file.url.startswith(HUB) else file.url


def _advice(file: PublicFile, error: DownloadError) -> str:
    """What the operator can do about a failed download."""
    by_hand = f"get it by other means, then run: sspsam weights pull {file.name} --file PATH"
    if isinstance(error, ProxyRefusedError):
        return f"Check HTTPS_PROXY and NO_PROXY, or {by_hand}"
    if isinstance(error, AccessRefusedError):
        token = ", set HF_TOKEN to a token that may read it" if file.url.startswith(f"{HUB}/") else ""
        return f"See {file.page or file.url}{token}, or {by_hand}"
    if isinstance(error, MissingError):
        return f"It may have moved: see {file.page or file.url}, {by_hand}"
    if isinstance(error, WrongContentError):
        return (
            f"A proxy may have replaced it, or its authors: see {file.page or file.url}. Start again to "
            f"download it again, or {by_hand}"
        )
    if isinstance(error, DiskFullError):
        return "Free some space, or choose another disk with MODEL_DIR; the download then resumes"
    return (
        "Check the network, HTTPS_PROXY and REQUESTS_CA_BUNDLE, and start again: the download resumes. "
        f"Without internet, take the files from --mirror FOLDER|URL, or {by_hand}"
    )


def _is_address(mirror: str) -> bool:
    return mirror.startswith(("http://", "https://"))
