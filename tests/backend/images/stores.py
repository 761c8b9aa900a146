"""Image stores on a simulated Label Studio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from werkzeug.wrappers import Response

from backend.images.fetching import HostRule
from backend.images.store import ImageStore
from backend.labelstudio.client import LabelStudioClient
from tests.backend.colours import encoded, picture
from tests.backend.web_server import Web

KEY = "k" * 40
PATH = "/data/upload/1/a.png"


def make_store(
    folder: Path,
    label_studio_url: str,
    max_bytes: int = 10**6,
    max_pixels: int = 10**5,
    timeout_s: float = 10.0,
    hosts: Sequence[str] = (),
    roots: Sequence[Path] = (),
) -> ImageStore:
    client = LabelStudioClient(label_studio_url, KEY)
    rules = [HostRule.parse(host) for host in hosts]
    return ImageStore(folder / "images", client, max_bytes, max_pixels, timeout_s, rules, roots)


@pytest.fixture
def label_studio() -> Iterator[Web]:
    with Web({PATH: Response(encoded(picture()), content_type="image/png")}) as web:
        yield web


@pytest.fixture
def elsewhere() -> Iterator[Web]:
    with Web({"/a.png": Response(encoded(picture()), content_type="image/png")}) as web:
        yield web


@pytest.fixture
def store(tmp_path: Path, label_studio: Web, elsewhere: Web) -> ImageStore:
    return make_store(tmp_path, label_studio.url, hosts=[urlsplit(elsewhere.url).netloc])
