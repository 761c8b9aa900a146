"""Malicious image files: a clear error, bounded memory, and a service that keeps running."""

from __future__ import annotations

import base64
import gc
import struct
import subprocess
import sys
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image
from werkzeug.wrappers import Response

from backend.errors import ImageFormatError
from backend.images.store import MAX_SIDE_PX, ImageStore
from backend.labelstudio.client import LabelStudioClient
from tests.backend.colours import encoded, picture
from tests.backend.editor import PATH, ask, prompt
from tests.backend.web_server import Web

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

MIB = 2**20
MEMORY_MIB = 96
"""What refusing a file may take at most."""


def png(width: int, height: int, pixels: bytes = b"", *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    packed = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + packed


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 1, 1, 0, 0)


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + b";"


def webp(width: int, height: int) -> bytes:
    """A canvas of that size with nothing on it."""
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes([2, 0, 0, 0])
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(width: int, height: int, count: int = 1) -> bytes:
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, count, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, count, width * height)]
    directory = struct.pack("<H", len(tags))
    directory += b"".join(struct.pack("<HHII", *(field & 0xFFFFFFFF for field in tag)) for tag in tags)
    return b"II*\x00" + struct.pack("<I", 8) + directory + struct.pack("<I", 0)


def sof(width: int, height: int) -> bytes:
    """A JPEG of only a header."""
    frame = struct.pack(">BHHB", 8, height, width, 1) + bytes([1, 0x11, 0])
    return b"\xff\xd8\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame + b"\xff\xd9"


PACKED_TEXT = b"comment\x00\x00" + zlib.compress(bytes(64 * MIB), 9)


BOMBS = {
    "png of 50 gigapixels": png(230_000, 230_000, zlib.compress(bytes(MIB))),
    "png of 4 gigapixels, sides allowed": png(65_000, 65_000, zlib.compress(bytes(MIB))),
    "png with a text bomb": png(8, 8, zlib.compress(bytes(72)), (b"zTXt", PACKED_TEXT)),
    "png with a colour profile bomb": png(8, 8, zlib.compress(bytes(72)), (b"iCCP", PACKED_TEXT)),
    "bmp": bmp(2**31 - 1, 2**31 - 1),
    "gif": gif(65_535, 65_535),
    "webp": webp(16_384, 16_384),
    "tiff": tiff(2**31, 2**31),
    "tiff with four billion strips": tiff(100, 100, 2**32 - 1),
    "jpeg": sof(65_535, 65_535),
}
ABSURD = {
    "png 0x0": png(0, 0),
    "png 0x9": png(0, 9, zlib.compress(bytes(9))),
    "png 100000x1": png(100_000, 1, zlib.compress(bytes(100_001))),
    "bmp 0x0": bmp(0, 0),
    "bmp of negative width": bmp(-5, 5),
    "gif 0x0": gif(0, 0),
    "jpeg 0x0": sof(0, 0),
    "tiff 0x0": tiff(0, 0),
}
NO_IMAGES = {
    "html": b"<!doctype html><img src=x onerror=alert(1)>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
    "pdf": b"%PDF-1.7\n",
    "pickle": b"cos\nsystem\n(S'true'\ntR.",
    "zip": b"PK\x03\x04" + bytes(40),
    "mpo of nothing": b"\xff\xd8\xff\xe2\x00\x10MPF\x00",
    "jpeg 2000": b"\x00\x00\x00\x0cjP  \r\n\x87\n",
    "psd": b"8BPS\x00\x01" + bytes(40),
}
HOSTILE = BOMBS | ABSURD | NO_IMAGES

REFUSE = """
import sys
from pathlib import Path
from backend.errors import ImageError
from backend.images.store import ImageStore
from backend.labelstudio.client import LabelStudioClient
store = ImageStore(Path(sys.argv[1]) / "kept", LabelStudioClient("http://127.0.0.1:9", "k"), 2**27, 10**8, 5,
                   (), [Path(sys.argv[1])])
def peak():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) // 1024
store.decode(store.digest(f"file://{sys.argv[1]}/good.png"))
for name in sys.argv[2:]:
    before = peak()
    try:
        store.decode(store.digest(f"file://{sys.argv[1]}/{name}"))
        said = "read"
    except ImageError as error:
        said = f"{type(error).__name__}: {error}"
    print(peak() - before, name, said, sep="|")
"""


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    client = LabelStudioClient("http://127.0.0.1:9", "key")
    return ImageStore(tmp_path / "kept", client, 100 * MIB, 100_000_000, 5)


def as_data(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def test_refusing_takes_bounded_memory(tmp_path: Path) -> None:
    """In a process of its own, whose peak counts: what a bomb unpacks to would be hundreds of times more."""
    (tmp_path / "good.png").write_bytes(encoded(picture()))
    for name, content in HOSTILE.items():
        (tmp_path / name.replace(" ", "-")).write_bytes(content)
    names = [name.replace(" ", "-") for name in HOSTILE]

    done = subprocess.run(
        [sys.executable, "-c", REFUSE, str(tmp_path), *names], capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 0, done.stderr
    lines = [line.split("|") for line in done.stdout.splitlines()]
    assert [name for _, name, _ in lines] == names
    for grown_mib, name, said in lines:
        assert said.startswith("ImageFormatError: "), (name, said)
        assert int(grown_mib) < MEMORY_MIB, (name, grown_mib)


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_dimensions(store: ImageStore, name: str) -> None:
    with pytest.raises(ImageFormatError):
        store.decode(store.digest(as_data(ABSURD[name])))


def test_a_side_may_be_as_long_as_jpegs_and_no_longer(store: ImageStore) -> None:
    def row(width: int) -> str:
        return as_data(png(width, 1, zlib.compress(bytes(width + 1))))

    assert store.decode(store.digest(row(MAX_SIDE_PX))).shape == (1, MAX_SIDE_PX, 3)
    with pytest.raises(ImageFormatError, match=f"1 to {MAX_SIDE_PX}"):
        store.digest(row(MAX_SIDE_PX + 1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_file_that_is_cut_anywhere_is_refused_or_read(store: ImageStore, kind: str) -> None:
    whole = encoded(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8), kind)
    for length in range(0, len(whole) - 1, max(1, len(whole) // 40)):
        try:
            pixels = store.decode(store.digest(as_data(whole[:length])))
        except ImageFormatError:
            continue
        assert pixels.shape == (30, 40, 3)


def polyglots() -> dict[str, bytes]:
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("x.py", "boom")
    return {
        "png and zip": encoded(picture()) + archive.getvalue(),
        "gif and script": encoded(picture(), "GIF") + b"*/=1;alert(1)//",
        "png and html": encoded(picture()) + b"<script>alert(1)</script>",
    }


@pytest.mark.parametrize("name", ["png and zip", "gif and script", "png and html"])
def test_a_polyglot_is_its_picture_and_nothing_else(store: ImageStore, name: str) -> None:
    """What else it may be does not matter: the file is only decoded, and never given out."""
    assert store.decode(store.digest(as_data(polyglots()[name]))).shape == picture().shape


def test_no_route_gives_fetched_files_out(client: FlaskClient, label_studio: Web) -> None:
    ask(client, prompt("the red square"))
    rules = [str(rule) for rule in client.application.url_map.iter_rules()]
    assert not [
        rule for rule in rules if "image" in rule or ("path:" in rule and not rule.startswith("/static/"))
    ]


@pytest.mark.slow
def test_the_service_lives_on(client: FlaskClient, label_studio: Web) -> None:
    for content in HOSTILE.values():
        label_studio.answers[PATH] = Response(content)
        said = str(ask(client, prompt("the red square")))
        assert "was not looked for" in said, said[:200]
        assert "error inside" not in said
    gc.collect()
    label_studio.answers[PATH] = Response(encoded(picture()))
    assert "brushlabels" in str(ask(client, prompt("the red square")))


def test_pillow_has_no_other_reader_at_hand(store: ImageStore) -> None:
    """Postscript would start Ghostscript."""
    file = BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PPM")
    with pytest.raises(ImageFormatError, match="JPEG, PNG, WEBP, BMP, GIF, TIFF"):
        store.digest(as_data(file.getvalue()))
