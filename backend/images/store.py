"""Task images: locating, downloading and decoding.

Cloud storage is read through Label Studio; `backend.images.fetching` defines the other sources and the
limits. Files are stored under the sha256 of their bytes, and never served.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import logging
import os
import struct
import time
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from io import BytesIO
from pathlib import Path
from threading import Lock
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache
from PIL import Image, UnidentifiedImageError

from backend.errors import ImageFetchError, ImageFormatError, ImageMissingError
from backend.images.fetching import LABEL_STUDIO_PATH, Fetcher, HostRule, Target
from backend.images.local_files import read_local
from backend.labelstudio.client import LabelStudioClient
from sspsam.images.image_io import picture_to_pixels

UInt8Image = npt.NDArray[np.uint8]

Image.MAX_IMAGE_PIXELS = None
"""Disables Pillow's own limit: `max_pixels` is checked before decoding."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
DAMAGED = (OSError, ValueError, SyntaxError, TypeError, LookupError, EOFError, OverflowError, struct.error)
"""Errors that Pillow's readers raise for malformed files."""
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of a full disk: no space, the quota used up, the limit of a file's size reached."""
STORAGE_SCHEMES = frozenset({"s3", "gs", "azure-blob", "azure_spi", "redis", "databricks"})
"""URL schemes of Label Studio's storages; only Label Studio has their credentials."""
MAX_SIDE_PX = 65_500
"""JPEG's own limit."""
LARGE_PX = 25_000_000
"""Images with more pixels are decoded one at a time: decoding takes several times their size in memory."""
THUMBNAIL_PX = 256
THUMBNAIL_MAX_PIXELS = 2_000_000
"""More are not decoded for a thumbnail."""
REMEMBERED_URLS = 10_000
URL_AGE_S = 600.0
"""How long an image from another host is assumed to be unchanged; Label Studio's uploads never change."""
UPLOADS_PATH = "/data/upload/"

logger = logging.getLogger(__name__)


class ImageStore:
    """Images by address and by content. Thread-safe. The constructor opens nothing.

    Args:
        folder: Cache folder, files named by sha256. Created on first use.
        client: Label Studio, whose images need the API key.
        max_bytes: Larger files are not read to the end.
        max_pixels: Larger images are not decoded.
        timeout_s: For a whole download.
        hosts: Other hosts to download from.
        roots: Folders below which `file://` URLs are read.
        host: Label Studio's own name, if it differs from the client's URL.
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
        self._digests: LRUCache[str, tuple[str, float]] = LRUCache(REMEMBERED_URLS)
        self._lock = Lock()

    def resolve(self, value: object, task_id: str = "") -> str:
        """Returns the URL of a task's image value.

        Args:
            value: Value in the task's data.
            task_id: Needed for files in Label Studio's storages: s3://, gs://, ...

        Raises:
            ImageMissingError: there is none, or its address is forbidden.
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
        """Downloads a task's image, unless it is cached.

        Args:
            value: Value in the task's data: a URL, a path on Label Studio, a storage URI, a file below one
                of the roots, or a data URI.
            task_id: As for `resolve`.

        Returns:
            sha256 of the file's bytes, in hex; input of `path` and `decode`.

        Raises:
            ImageMissingError, ImageFetchError, ImageFormatError: see their classes.
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
        return digest

    def path(self, digest: str) -> Path:
        """Returns the path for a digest, whether or not the file exists."""
        return self.folder / digest

    def decode(self, digest: str) -> UInt8Image:
        """Decodes a cached image as Label Studio shows it: upright, without transparency.

        Returns:
            (H, W, 3) uint8, RGB.

        Raises:
            ImageFormatError: it cannot be decoded.
            ImageFetchError: it is not cached.
        """
        try:
            data = self.path(digest).read_bytes()
        except OSError as error:
            raise ImageFetchError(f"the image is not in the cache any more: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != digest:
            self.path(digest).unlink(missing_ok=True)
            raise ImageFetchError("the image was damaged in the cache and has been removed: try again")
        with self._open(data) as image, self._turn(image):
            try:
                return picture_to_pixels(image)
            except DAMAGED as error:
                raise ImageFormatError(f"the image file is damaged: {error}") from error

    def thumbnail(self, digest: str) -> UInt8Image | None:
        """A cached image at a size that is quick to decode, upright or not.

        Returns:
            (h, w, 3) uint8, RGB, with sides of at least THUMBNAIL_PX if the image's are longer; None for one
            whose format can only be decoded as a whole, and is large.

        Raises:
            ImageFormatError, ImageFetchError: as for `decode`.
        """
        try:
            data = self.path(digest).read_bytes()
        except OSError as error:
            raise ImageFetchError(f"the image is not in the cache any more: {error.strerror}") from error
        with self._open(data) as image:
            try:
                image.draft("RGB", (THUMBNAIL_PX, THUMBNAIL_PX))  # JPEG: 1/2, 1/4 or 1/8 of its size
                small = image.width * image.height <= THUMBNAIL_MAX_PIXELS
                return picture_to_pixels(image) if small else None
            except DAMAGED as error:
                raise ImageFormatError(f"the image file is damaged: {error}") from error

    def _on_label_studio(self, path: str) -> str:
        """A path on Label Studio, which a proxy may have put under another path."""
        prefixes = {urlsplit(url).path.rstrip("/") for url in (self._client.url, self._host)} - {""}
        for prefix in sorted(prefixes, key=len, reverse=True):
            if path.startswith(f"{prefix}/"):
                return self._client.url + path.removeprefix(prefix)
        # In an address that begins with two slashes a host follows, which is not Label Studio's path.
        own = None if path.startswith("//") else LABEL_STUDIO_PATH.search(path.partition("?")[0])
        return self._client.url + (path[own.start() :] if own else path)

    def _remembered(self, url: str) -> str | None:
        with self._lock:
            digest, since_s = self._digests.get(url, ("", 0.0))
        stays = UPLOADS_PATH in url and self._fetcher.is_label_studio(Target.parse(url))
        fresh = stays or time.monotonic() - since_s < URL_AGE_S
        return digest if digest and fresh and self.path(digest).is_file() else None

    def _keep_checked(self, data: bytes) -> str:
        """Stores a file if it is a readable image; returns its digest."""
        self._open(data).close()
        digest = hashlib.sha256(data).hexdigest()
        if not self.path(digest).is_file():
            self._keep(digest, data)
        return digest

    def _keep(self, digest: str, data: bytes) -> None:
        """Writes to a temporary file and renames it, so that readers never see a partial file."""
        aside = self.folder / f".{uuid.uuid4().hex}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(data)
            os.replace(aside, self.path(digest))
        except OSError as error:
            with suppress(OSError):  # a read-only file system refuses this too
                aside.unlink(missing_ok=True)
            logger.error("cannot store images in %s: %s", self.folder, error)
            full = error.errno in NO_ROOM
            advice = "its disk is full" if full else "its folder MODEL_DIR must be writable"
            raise ImageFetchError(
                f"the backend cannot store the image ({error.strerror}): {advice}"
            ) from error

    def _turn(self, image: Image.Image) -> AbstractContextManager[object]:
        """Serialises decoding of large images, to bound memory."""
        return self._large if image.width * image.height > LARGE_PX else nullcontext()

    def _open(self, data: bytes) -> Image.Image:
        """Reads the header only."""
        try:
            image = Image.open(BytesIO(data), formats=FORMATS)
        except (UnidentifiedImageError, *DAMAGED) as error:
            raise ImageFormatError(
                f"the file is not an image in a supported format ({', '.join(FORMATS)})"
            ) from error
        if not 0 < min(image.size) <= max(image.size) <= MAX_SIDE_PX:
            raise ImageFormatError(
                f"the image has {image.width} x {image.height} pixels; sides must have 1 to {MAX_SIDE_PX}"
            )
        if image.width * image.height > self._max_pixels:
            raise ImageFormatError(
                f"the image has {image.width} x {image.height} pixels; the limit is {self._max_pixels}"
            )
        return image


def _data_of(uri: str, max_bytes: int) -> bytes:
    """Bytes of a data URI (RFC 2397)."""
    header, comma, content = uri[5:].partition(",")
    if not comma:
        raise ImageFormatError("the task's data URI is truncated: it has no comma")
    if len(content) > 4 * max_bytes:
        raise ImageFormatError(f"the image is larger than {max_bytes} bytes")
    try:
        data = unquote_to_bytes(content)
        if header.rstrip().lower().endswith(";base64"):
            encoded = b"".join(data.split()).rstrip(b"=")  # browsers need neither lines nor padding
            data = base64.b64decode(encoded + b"=" * (-len(encoded) % 4), validate=True)
    except ValueError as error:
        raise ImageFormatError(f"the task's data URI is damaged: {error}") from error
    if len(data) > max_bytes:
        raise ImageFormatError(f"the image is larger than {max_bytes} bytes")
    return data
