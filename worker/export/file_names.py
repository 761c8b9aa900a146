"""File names of pictures: unique, relative, and with the extension of an image.

Tools take the name without its extension as the picture's identity, so names that differ only by extension or
case are told apart as well.
"""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
from urllib.parse import parse_qs, unquote, urlsplit

EXTENSIONS = frozenset({".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
DEFAULT_EXTENSION = ".jpg"
"""Of pictures whose address has none, if they cannot be fetched."""
FORMAT_EXTENSIONS = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "GIF": ".gif",
    "TIFF": ".tif",
}
"""Pillow's name of a format -> extension."""
DATA_CHARACTERS = 64
"""Of a data URI's content, that tell its format."""
PART_BYTES = 150
"""Of a folder's or file's name; file systems allow 255, and duplicates get a prefix."""
PARTS = 20
"""Most folders of a name, its own included."""
_STORAGES = ("s3", "gs", "azure-blob", "azure_spi", "redis", "databricks")
_SIGNATURES = (
    (b"\x89PNG", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\x00", ".tif"),
    (b"MM\x00*", ".tif"),
)
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"|?*\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]')
"""Characters that no file system, or not every one, allows, and those that change how a name is displayed."""
_RESERVED = re.compile(
    r"(?:con|prn|aux|nul|com[0-9\u00b9\u00b2\u00b3]|lpt[0-9\u00b9\u00b2\u00b3]) *(?:\..*)?", re.I
)
"""Names of devices on Windows, with any extension."""
_BY_STORAGE = re.compile(r"/(?:resolve|presign)/?$")


def name_of(address: str, task_id: int) -> str:
    """Derives a file name, with folders, from a picture's address.

    Args:
        address: In the task's data: a path on Label Studio, a URL, a storage's or a data URI.
        task_id: Names pictures that have no name of their own.

    Returns:
        A relative path; its extension is one of EXTENSIONS, or missing if the address has none.
    """
    address = address.strip()
    if address[:5].lower() == "data:":
        return f"task-{task_id}{_data_extension(address)}"
    name = _safe(_path_in(address)) or f"task-{task_id}"
    return name if extension_of(name) else _with_query_extension(name, address)


def extension_of(name: str) -> str:
    """The image extension of a name; empty if it has none."""
    found = "." + name.rpartition(".")[2].lower() if "." in name.rpartition("/")[2] else ""
    return found if found in EXTENSIONS else ""


class FileNames:
    """Names given in one export; each is unique without its extension and regardless of case."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def unique(self, name: str, task_id: int) -> str:
        """Returns the name; a duplicate is prefixed with the task's ID."""
        folder, slash, last = name.rpartition("/")
        candidate, number = name, 0
        while (key := _stem(candidate)) in self._taken:
            number += 1
            prefix = f"{task_id}-" if number == 1 else f"{task_id}-{number}-"
            candidate = f"{folder}{slash}{prefix}{last}"
        self._taken.add(key)
        return candidate


def _stem(name: str) -> str:
    extension = extension_of(name)
    return unicodedata.normalize("NFC", (name[: -len(extension)] if extension else name).casefold())


def _path_in(address: str) -> str:
    """The part of an address that names the file: below the storage for files that are kept in folders."""
    try:
        parts = urlsplit(address)
        query = parse_qs(parts.query)
    except ValueError:
        return address.rpartition("/")[2]
    path = unquote(parts.path)
    if path.rstrip("/").endswith("/data/local-files") and query.get("d"):
        return query["d"][0]
    if _BY_STORAGE.search(path) and query.get("fileuri"):
        stored = _decoded(query["fileuri"][0])
        return _path_in(stored) if stored else ""
    if parts.scheme in _STORAGES:
        return path
    return path.rpartition("/")[2]


def _decoded(file_uri: str) -> str:
    """Label Studio's storages are addressed by the base64 of their URI."""
    try:
        return base64.urlsafe_b64decode(file_uri + "=" * (-len(file_uri) % 4)).decode()
    except ValueError:
        return ""


def _with_query_extension(name: str, address: str) -> str:
    """Services such as `/get?file=cat.jpg` name the file in their query."""
    try:
        values = [value for found in parse_qs(urlsplit(address).query).values() for value in found]
    except ValueError:
        return name
    named = next((last for value in values if extension_of(last := value.rpartition("/")[2])), None)
    return (_safe(named) if named else "") or name


def _data_extension(uri: str) -> str:
    """By the first bytes; else by the media type, which nothing guarantees."""
    header, _, content = uri[5:].partition(",")
    start = content[:DATA_CHARACTERS]
    try:
        head = base64.b64decode(start) if header.endswith(";base64") else unquote(start).encode("latin-1")
    except ValueError:
        head = b""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ".webp"
    found = next((extension for signature, extension in _SIGNATURES if head.startswith(signature)), "")
    subtype = header.partition(";")[0].partition("/")[2].upper()
    return found or FORMAT_EXTENSIONS.get(subtype, "")


def _safe(path: str) -> str:
    """A relative path without `..`, and with parts that file systems allow."""
    parts = [_safe_part(part) for part in path.replace("\\", "/").split("/")]
    return "/".join([part for part in parts if part not in ("", ".", "..")][-PARTS:])


def _safe_part(part: str) -> str:
    part = unicodedata.normalize("NFC", part.encode("utf-8", "replace").decode())
    part = _UNSAFE.sub("_", part).strip().rstrip(". ")  # Windows drops dots and blanks at the end
    if _RESERVED.fullmatch(part):
        part = f"_{part}"
    if len(part.encode()) <= PART_BYTES:
        return part
    extension = extension_of(part)
    digest = hashlib.sha256(part.encode()).hexdigest()[:12]
    kept = part.encode()[: PART_BYTES - len(extension) - 13].decode(errors="ignore")
    return f"{kept}-{digest}{extension}"
