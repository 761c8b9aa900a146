"""The pictures of tasks: where they are, fetching them safely, their pixels.

Only http and https are fetched; what lies in a cloud storage comes through Label Studio. Our key goes to
Label Studio's own origin and to no other, also not when a redirect leads away from it. Files are kept under
the sha256 of their bytes.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import time
import uuid
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from threading import Lock
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import numpy as np
import numpy.typing as npt
import requests
from PIL import Image, UnidentifiedImageError

from backend.errors import (
    ImageFetchError,
    ImageFormatError,
    ImageMissingError,
    LabelStudioUnauthorized,
)
from backend.labelstudio.client import LabelStudioClient
from sspsam.pictures import picture_to_pixels

UInt8Image = npt.NDArray[np.uint8]

Image.MAX_IMAGE_PIXELS = None
"""Pillow's own bound: ours, `max_pixels`, is looked at before anything is decoded."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
STORAGE_SCHEMES = frozenset({"s3", "gs", "azure-blob", "azure_spi", "redis", "databricks"})
"""What Label Studio's storages call their files; only it has the keys to them."""
MAX_REDIRECTS = 5
CONNECT_TIMEOUT_S = 5.0
CHUNK_BYTES = 1 << 16
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
    """

    def __init__(
        self, folder: Path, client: LabelStudioClient, max_bytes: int, max_pixels: int, timeout_s: float
    ) -> None:
        self.folder = folder
        self._client = client
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._timeout_s = timeout_s
        self._session = requests.Session()
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
                storages, or the picture itself as a data URI.
            task_id: As for `resolve`.

        Returns:
            sha256 of the file's bytes, in hex; `path` and `decode` take it.

        Raises:
            ImageMissingError, ImageFetchError, ImageFormatError: as they say.
        """
        if isinstance(value, str) and value.lstrip()[:5].lower() == "data:":
            return self._keep_checked(_data_of(value.strip(), self._max_bytes))
        url = self.resolve(value, task_id)
        known = self._remembered(url)
        if known is not None:
            return known
        digest = self._keep_checked(self._fetch(url))
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
        with self._open(data) as image:
            try:
                return picture_to_pixels(image)
            except (OSError, ValueError, SyntaxError) as error:
                raise ImageFormatError(f"the image file is damaged: {error}") from error

    def _on_label_studio(self, path: str) -> str:
        prefix = urlsplit(self._client.url).path
        if prefix and path.startswith(f"{prefix}/"):
            path = path.removeprefix(prefix)
        return self._client.url + path

    def _remembered(self, url: str) -> str | None:
        with self._lock:
            digest, since_s = self._digests.get(url, ("", 0.0))
        stays = self._client.same_origin(url) and UPLOADS_PATH in url
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
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f".{uuid.uuid4().hex}"
        aside.write_bytes(data)
        os.replace(aside, self.path(digest))

    def _fetch(self, url: str) -> bytes:
        deadline = time.monotonic() + self._timeout_s
        try:
            for _ in range(MAX_REDIRECTS + 1):
                with self._get(url, deadline) as response:
                    if not response.is_redirect:
                        return self._read(response, deadline)
                    url = self.resolve(urljoin(url, response.headers["location"]))
        except requests.RequestException as error:
            raise ImageFetchError(
                f"the image's server {_host(url)} does not answer ({type(error).__name__})"
            ) from error
        raise ImageFetchError(f"the image's server {_host(url)} redirects without end")

    def _get(self, url: str, deadline: float) -> requests.Response:
        ours = self._client.same_origin(url)
        header = self._client.authorization() if ours else ""

        def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
            if header:
                request.headers["Authorization"] = header
            return request

        left_s = max(deadline - time.monotonic(), 0.001)
        timeout = (min(CONNECT_TIMEOUT_S, left_s), left_s)
        response = self._session.get(url, auth=sign, stream=True, allow_redirects=False, timeout=timeout)
        if ours and response.status_code in (401, 403):
            raise LabelStudioUnauthorized(
                f"Label Studio refuses the backend's key ({response.status_code}): "
                "whoever runs the backend must set LABEL_STUDIO_API_KEY"
            )
        if response.status_code >= 400:
            raise ImageFetchError(f"the image's server {_host(url)} answers {response.status_code}")
        return response

    def _read(self, response: requests.Response, deadline: float) -> bytes:
        if int(response.headers.get("content-length") or 0) > self._max_bytes:
            raise ImageFormatError(f"the image file is larger than {self._max_bytes} bytes")
        data = bytearray()
        for chunk in response.iter_content(CHUNK_BYTES):
            data += chunk
            if len(data) > self._max_bytes:
                raise ImageFormatError(f"the image file is larger than {self._max_bytes} bytes")
            if time.monotonic() > deadline:
                raise ImageFetchError(f"the image did not arrive within {self._timeout_s:g} s")
        return bytes(data)

    def _open(self, data: bytes) -> Image.Image:
        """Reads the header alone."""
        try:
            image = Image.open(BytesIO(data), formats=FORMATS)
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise ImageFormatError(
                f"the file is not an image that can be read ({', '.join(FORMATS)})"
            ) from error
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


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]
