"""Public weights on this machine: a folder of downloaded files, each with a record of what was checked."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import requests

from sspsam.downloads import (
    CONNECT_TIMEOUT_S,
    PAUSE_S,
    READ_TIMEOUT_S,
    DownloadError,
    Progress,
    download,
    place_copy,
)
from sspsam.files import replace_text, sha256_of_file
from sspsam.published import (
    HUB,
    HUB_REPOSITORY,
    PUBLIC_FILES,
    PublicFile,
    Record,
    find_public_file,
    hub_file,
    record_path,
)

Condition = Literal["good", "damaged", "absent", "unknown"]
"""`unknown`: there is no sha256 to compare with."""

WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
RECORDED = "nobody states it: recorded at the first download"
_SHA256_LENGTH = 64


class WeightsFolder:
    """Downloaded files. Making one opens nothing.

    Args:
        folder: where they lie.
        mirror: a folder or an address that has the files under their own names, in place of the internet.
        hub: address of the Hugging Face hub, or of a mirror of it (HF_ENDPOINT).
        pause_s: between attempts.
    """

    def __init__(self, folder: Path, mirror: str = "", hub: str = HUB, pause_s: float = PAUSE_S) -> None:
        self.folder = folder
        self._mirror = mirror
        self._hub = hub.rstrip("/")
        self._pause_s = pause_s

    def path(self, file: PublicFile) -> Path:
        """Where a file lies, or would lie."""
        return self.folder / file.file_name

    def record(self, file: PublicFile) -> Record | None:
        """What is known about a downloaded file; None if it was not downloaded."""
        return Record.read(record_path(self.path(file))) if self.path(file).is_file() else None

    def pull(self, file: PublicFile, progress: Progress = lambda done, total: None) -> Record:
        """Downloads a file, unless it is here and as it should be.

        Its sha256 must be the published one; where none is, the one that the hub states; where it states
        none, the one of an earlier download, if there was one.

        Raises:
            DownloadError: it cannot be had.
            WrongContentError: what came is another file.
        """
        if self.verify(file) == "good":
            return self.record(file) or self._note(file, "it was there", str(file.sha256), file.sha256_from)
        sha256, sha256_from = self._expected(file)
        target, came_from = self.path(file), self._address(file)
        if self._mirror and not _is_address(self._mirror):
            found = place_copy(Path(came_from), target, sha256)
        else:
            found = download(
                came_from, target, sha256, file.size_bytes, progress=progress, pause_s=self._pause_s
            )
        return self._note(file, came_from, found, sha256_from)

    def verify(self, file: PublicFile) -> Condition:
        """Compares a file with its published sha256 or, where there is none, with that of its download."""
        path, record = self.path(file), self.record(file)
        if not path.is_file():
            return "absent"
        expected = file.sha256 or (record.sha256 if record else None)
        if expected is None:
            return "unknown"
        return "good" if sha256_of_file(path) == expected else "damaged"

    def files(self) -> list[PublicFile]:
        """The table, and other files of the authors' repository that are here."""
        known = {file.file_name for file in PUBLIC_FILES}
        others = []
        for path in sorted(self.folder.glob("*.json")):
            record = Record.read(path)
            if record and path.stem not in known:
                others.append(find_public_file(record.name))
        return [*PUBLIC_FILES, *others]

    def hub_files(self) -> list[PublicFile]:
        """What the authors' repository on the hub holds now, with the sizes and sha256 that the hub states.

        Raises:
            DownloadError: the hub cannot be asked.
        """
        address = f"{self._hub}/api/models/{HUB_REPOSITORY}?blobs=true"
        try:
            with requests.get(address, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)) as answer:
                answer.raise_for_status()
                listed: list[dict[str, Any]] = answer.json()["siblings"]
        except (requests.RequestException, ValueError, KeyError) as error:
            raise DownloadError(f"the list of files cannot be had from {address}: {error}") from error
        return [
            hub_file(
                entry["rfilename"],
                size_bytes=entry.get("size"),
                sha256=(entry.get("lfs") or {}).get("sha256"),
            )
            for entry in listed
            if entry["rfilename"].endswith(WEIGHT_SUFFIXES)
        ]

    def _expected(self, file: PublicFile) -> tuple[str | None, str]:
        """The sha256 that a download must have, and who says so."""
        if file.sha256 is not None:
            return file.sha256, file.sha256_from
        if not self._mirror and (stated := self._stated_by_hub(file)):
            return stated, file.sha256_from
        if earlier := Record.read(record_path(self.path(file))):
            return earlier.sha256, earlier.sha256_from
        return None, RECORDED

    def _stated_by_hub(self, file: PublicFile) -> str | None:
        """The hub answers with a redirect that names the content's sha256."""
        try:
            with requests.head(
                self._address(file), allow_redirects=True, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
            ) as last:
                answers = [*last.history, last]
        except requests.RequestException as error:
            raise DownloadError(f"{self._address(file)} cannot be asked for: {error}") from error
        for answer in answers:
            stated = answer.headers.get("X-Linked-ETag", "").strip('"').lower()
            if len(stated) == _SHA256_LENGTH:
                return stated
        return None

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


def _is_address(mirror: str) -> bool:
    return mirror.startswith(("http://", "https://"))
