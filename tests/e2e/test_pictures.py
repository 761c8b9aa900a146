"""Images as displayed by a browser, compared with the model's input."""

import base64
from collections.abc import Callable
from io import BytesIO

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from playwright.sync_api import Browser

from sspsam.images.image_io import picture_to_pixels

UInt8Image = npt.NDArray[np.uint8]
HEIGHT, WIDTH = 48, 64
ORIENTATION = 0x0112
PIXELS = """async address => {
  const image = new Image(); image.src = address; await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0);
  const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
  return [canvas.height, canvas.width, Array.from(data)];
}"""
"""The editor lays pictures on white, too."""


def scene() -> Image.Image:
    """Smooth colours, and a corner that tells how it is turned."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([4 * columns, 5 * rows, 255 - 2 * (rows + columns)], axis=-1).astype(np.uint8)
    pixels[:12, :20] = (250, 240, 10)
    return Image.fromarray(pixels)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def grey16() -> Image.Image:
    """From black to white, in more steps than a screen has."""
    return Image.fromarray(np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH))


def with_alpha() -> Image.Image:
    image = scene().convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))))
    return image


def frames() -> bytes:
    return saved(scene(), "GIF", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT), "red")])


JPEG = {"quality": 95, "subsampling": 0}
FILES: dict[str, tuple[Callable[[], bytes], float]] = {
    "JPEG": (lambda: saved(scene(), "JPEG", **JPEG), 2),
    "JPEG on its side": (lambda: saved(scene(), "JPEG", exif=turned(6), **JPEG), 2),
    "JPEG, mirrored": (lambda: saved(scene(), "JPEG", exif=turned(5), **JPEG), 2),
    "JPEG, grey": (lambda: saved(scene().convert("L"), "JPEG", **JPEG), 2),
    "JPEG, CMYK": (lambda: saved(scene().convert("CMYK"), "JPEG", **JPEG), 6),
    "PNG": (lambda: saved(scene(), "PNG"), 0),
    "PNG, grey": (lambda: saved(scene().convert("L"), "PNG"), 0),
    "PNG, palette": (lambda: saved(scene().convert("P"), "PNG"), 0),
    "PNG, 16 bits": (lambda: saved(grey16(), "PNG"), 1),
    "PNG, alpha": (lambda: saved(with_alpha(), "PNG"), 2),
    "PNG, grey and alpha": (lambda: saved(with_alpha().convert("LA"), "PNG"), 2),
    "PNG on its side": (lambda: saved(scene(), "PNG", exif=turned(6)), 0),
    "WebP": (lambda: saved(scene(), "WEBP", lossless=True), 0),
    "WebP, alpha": (lambda: saved(with_alpha(), "WEBP", lossless=True), 2),
    "BMP": (lambda: saved(scene(), "BMP"), 0),
    "GIF of two frames": (frames, 0),
}
"""What it is -> how it is made, and by how much a value may differ: where decoders round."""


@pytest.mark.parametrize("name", FILES)
def test_the_model_sees_what_the_browser_shows(browser: Browser, name: str) -> None:
    make, tolerance = FILES[name]
    data = make()
    page = browser.new_page()
    address = f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"
    kind = Image.open(BytesIO(data)).get_format_mimetype()
    address = address.replace("application/octet-stream", str(kind))
    height, width, values = page.evaluate(PIXELS, address)
    page.close()
    shown = np.array(values, np.uint8).reshape(height, width, 4)[..., :3]

    ours = picture_to_pixels(Image.open(BytesIO(data)))

    assert ours.shape == shown.shape
    assert np.abs(ours.astype(int) - shown).max() <= tolerance
