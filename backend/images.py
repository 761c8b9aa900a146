"""The pictures of tasks: where they are, fetching them safely, their pixels.

What lies in a cloud storage comes through Label Studio; `backend.fetching` says from where else pictures
come, and which limits hold. Files are kept under the sha256 of their bytes, and are not given out again.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import struct
import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from io import BytesIO
from pathlib import Path
from threading import Lock
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from backend.errors import ImageFetchError, ImageFormatError, ImageMissingError
from backend.fetching import Fetcher, HostRule, Target
from backend.labelstudio.client import LabelStudioClient
from backend.local_files import read_local
from sspsam.pictures import picture_to_pixels

UInt8Image = npt.NDArray[np.uint8]

Image.MAX_IMAGE_PIXELS = None
"""Pillow's own bound: ours, `max_pixels`, is looked at before anything is decoded."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
DAMAGED = (OSError, ValueError, SyntaxError, TypeError, LookupError, EOFError, OverflowError, struct.error)
"""What Pillow's readers raise for files that are not what they say."""
STORAGE_SCHEMES = frozenset({"s3", "gs", "azure-blob", "azure_spi", "redis", "databricks"})
"""What Label Studio's storages call their files; only it has the keys to them."""
MAX_SIDE_PX = 65_500
"""JPEG's own bound. What is longer is no picture that anybody labels."""
LARGE_PX = 25_000_000
"""Pictures with more pixels are decoded one at a time: each takes several times its pixels in memory."""
REMEMBERED_URLS = 10_000
URL_AGE_S = 600.0
"""For how long a picture elsewhere is taken to be the same; Label Studio's uploads never change."""
UPLOADS_PATH = "/data/upload/"

logger = logging.getLogger(__name__)


class ImageStore:
    """Pictures by address and by content. Safe to share between threads. Making one opens nothing.

    Args:
        folder: Where files are kept, each named by its sha256. Made when the first one comes.
        client: Of the Label Studio whose pictures need our key.
        max_bytes: Larger files are not read to the end.
        max_pixels: Pictures with more are not decoded.
        timeout_s: For the whole of one fetch.
        hosts: Other hosts that pictures are fetched from.
        roots: Folders below which `file://` addresses are read.
        host: What Label Studio calls itself, where that is not the client's address.
    """

    def __init__(
        self,
        folder: Path,
        client: LabelStudioClient,
        max_bytes: int,
        max_pixels: int,
        timeout_s: float,
        hosts: Sequence[HostRule] = (),
        roots: Sequence[Path] = (),
        host: str = "",
    ) -> None:
        self.folder = folder
        self._client = client
        self._host = f"{host.rstrip('/')}/" if host else ""
        self._fetcher = Fetcher(client, hosts, max_bytes, timeout_s)
        self._roots = roots
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._large = Lock()
        self._digests: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._lock = Lock()

    def resolve(self, value: object, task_id: str = "") -> str:
        """Returns the URL that a task's image value stands for.

        Args:
            value: What the task's data holds.
            task_id: Through which Label Studio gives out what is in its storages: s3://, gs://, ...

        Raises:
            ImageMissingError: there is none, or it is not at an address that we fetch.
        """
        if not isinstance(value, str) or not value.strip():
            raise ImageMissingError("the task has no image")
        value = value.strip()
        if value.startswith("/"):
            return self._on_label_studio(value)
        if self._host and value.startswith(self._host):
            return self._on_label_studio(f"/{value.removeprefix(self._host)}")
        parts = urlsplit(value)
        if parts.scheme in STORAGE_SCHEMES and task_id:
            uri = base64.urlsafe_b64encode(value.encode()).decode()
            return f"{self._client.url}/tasks/{task_id}/resolve/?fileuri={uri}"
        if parts.scheme not in ("http", "https") or not parts.hostname:
            shown = f"{parts.scheme}:" if parts.scheme else value[:40]
            raise ImageMissingError(
                f"the task's image is at {shown!r}: only http, https and Label Studio's uploads are read"
            )
        return value

    def digest(self, value: object, task_id: str = "") -> str:
        """Fetches a task's image, unless it is here already.

        Args:
            value: What the task's data holds: a URL, a path on Label Studio, an address in one of its
                storages, a file below one of the roots, or the picture itself as a data URI.
            task_id: As for `resolve`.

        Returns:
            sha256 of the file's bytes, in hex; `path` and `decode` take it.

        Raises:
            ImageMissingError, ImageFetchError, ImageFormatError: as they say.
        """
        if isinstance(value, str) and value.lstrip()[:5].lower() == "data:":
            return self._keep_checked(_data_of(value.strip(), self._max_bytes))
        if isinstance(value, str) and value.lstrip()[:5].lower() == "file:":
            return self._keep_checked(read_local(value.strip(), self._roots, self._max_bytes))
        url = self.resolve(value, task_id)
        known = self._remembered(url)
        if known is not None:
            return known
        digest = self._keep_checked(self._fetcher.fetch(url))
        with self._lock:
            self._digests[url] = (digest, time.monotonic())
            while len(self._digests) > REMEMBERED_URLS:
                self._digests.popitem(last=False)
        return digest

    def path(self, digest: str) -> Path:
        """Returns where the file of a digest is, or would be."""
        return self.folder / digest

    def decode(self, digest: str) -> UInt8Image:
        """Reads the pixels of a fetched image as Label Studio shows it: upright, without transparency.

        Returns:
            (H, W, 3) uint8, RGB.

        Raises:
            ImageFormatError: it cannot be decoded.
            ImageFetchError: it was not fetched, or its file is gone.
        """
        try:
            data = self.path(digest).read_bytes()
        except OSError as error:
            raise ImageFetchError(f"the picture is not in the cache any more: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != digest:
            self.path(digest).unlink(missing_ok=True)
            raise ImageFetchError("the picture was damaged in the cache, and is gone from it: try again")
        with self._open(data) as image, self._turn(image):
            try:
                return picture_to_pixels(image)
            except DAMAGED as error:
                raise ImageFormatError(f"the image file is damaged: {error}") from error

    def _on_label_studio(self, path: str) -> str:
        prefix = urlsplit(self._client.url).path
        if prefix and path.startswith(f"{prefix}/"):
            path = path.removeprefix(prefix)
        return self._client.url + path

    def _remembered(self, url: str) -> str | None:
        with self._lock:
            digest, since_s = self._digests.get(url, ("", 0.0))
        stays = UPLOADS_PATH in url and self._fetcher.is_label_studio(Target.parse(url))
        fresh = stays or time.monotonic() - since_s < URL_AGE_S
        return digest if digest and fresh and self.path(digest).is_file() else None

    def _keep_checked(self, data: bytes) -> str:
        """Keeps a file that is an image that we read; returns its digest."""
        self._open(data).close()
        digest = hashlib.sha256(data).hexdigest()
        if not self.path(digest).is_file():
            self._keep(digest, data)
        return digest

    def _keep(self, digest: str, data: bytes) -> None:
        """Writes the file aside and moves it in, so that no reader sees a part of it."""
        aside = self.folder / f".{uuid.uuid4().hex}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(data)
            os.replace(aside, self.path(digest))
        except OSError as error:
            aside.unlink(missing_ok=True)
            logger.error("pictures cannot be kept in %s: %s", self.folder, error)
            raise ImageFetchError(
                f"the backend cannot keep the picture ({error.strerror}): its disk may be full"
            ) from error

    def _turn(self, image: Image.Image) -> AbstractContextManager[object]:
        """Large pictures wait for each other, so that a few of them do not take all memory."""
        return self._large if image.width * image.height > LARGE_PX else nullcontext()

    def _open(self, data: bytes) -> Image.Image:
        """Reads the header alone."""
        try:
            image = Image.open(BytesIO(data), formats=FORMATS)
        except (UnidentifiedImageError, *DAMAGED) as error:
            raise ImageFormatError(
                f"the file is not an image that can be read ({', '.join(FORMATS)})"
            ) from error
        if not 0 < min(image.size) <= max(image.size) <= MAX_SIDE_PX:
            raise ImageFormatError(
                f"the image has {image.width} x {image.height} pixels; a side has 1 to {MAX_SIDE_PX}"
            )
        if image.width * image.height > self._max_pixels:
            raise ImageFormatError(
                f"the image has {image.width} x {image.height} pixels; at most {self._max_pixels} are read"
            )
        return image


def _data_of(uri: str, max_bytes: int) -> bytes:
    """The bytes of a data URI (RFC 2397)."""
    header, comma, content = uri[5:].partition(",")
    if not comma:
        raise ImageFormatError("the task's data URI is cut: it has no comma")
    if len(content) > 4 * max_bytes:
        raise ImageFormatError(f"the image is larger than {max_bytes} bytes")
    try:
        raw = unquote_to_bytes(content)
        data = base64.b64decode(raw, validate=True) if header.endswith(";base64") else raw
    except ValueError as error:
        raise ImageFormatError(f"the task's data URI is damaged: {error}") from error
    if len(data) > max_bytes:
        raise ImageFormatError(f"the image is larger than {max_bytes} bytes")
    return data
