"""Pixels of fetched images: formats, orientation, colour modes, bit depths."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from werkzeug.wrappers import Response

from backend.images.store import ImageStore
from backend.settings import Settings
from tests.backend.colours import encoded, picture
from tests.backend.images.stores import PATH, elsewhere, label_studio, make_store, store
from tests.backend.web_server import Web

__all__ = ["elsewhere", "label_studio", "store"]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_several_frames_the_first_is_read(store: ImageStore, label_studio: Web, kind: str) -> None:
    file = BytesIO()
    first, second = Image.new("RGB", (9, 7), "red"), Image.new("RGB", (9, 7), "blue")
    lossless = {"lossless": True} if kind == "WEBP" else {}
    first.save(file, kind, save_all=True, append_images=[second], **lossless)
    label_studio.answers[PATH] = Response(file.getvalue())

    pixels = store.decode(store.digest(PATH))

    assert pixels.shape == (7, 9, 3)
    assert (pixels == (255, 0, 0)).all()


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_of_a_tiff(store: ImageStore, label_studio: Web, order: str) -> None:
    file = BytesIO()
    Image.fromarray(np.array([[0, 256 * 200, 65535]], dtype=order)).save(file, "TIFF")
    label_studio.answers[PATH] = Response(file.getvalue())

    assert store.decode(store.digest(PATH))[0, :, 0].tolist() == [0, 200, 255]


@pytest.mark.slow
def test_a_hundred_megapixels_are_read(tmp_path: Path, label_studio: Web) -> None:
    store = make_store(tmp_path, label_studio.url, max_pixels=Settings().image_max_pixels, timeout_s=60)
    file = BytesIO()
    Image.new("1", (12_500, 8_000)).save(file, "PNG")
    label_studio.answers[PATH] = Response(file.getvalue())

    assert store.decode(store.digest(PATH)).shape == (8_000, 12_500, 3)


def decode(store: ImageStore, web: Web, data: bytes) -> np.ndarray:
    web.answers[PATH] = Response(data)
    return store.decode(store.digest(PATH))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_formats(store: ImageStore, label_studio: Web, kind: str) -> None:
    shown = decode(store, label_studio, encoded(picture(), kind))

    assert shown.shape == picture().shape
    off = np.abs(shown.astype(int) - picture()).mean()
    assert off < (12 if kind in ("JPEG", "WEBP") else 1), "lossy ones are near"


def test_cmyk_of_a_jpeg(store: ImageStore, label_studio: Web) -> None:
    file = BytesIO()
    Image.new("RGB", (16, 16), "white").convert("CMYK").save(file, "JPEG")

    assert decode(store, label_studio, file.getvalue()).min() > 250


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_undone(
    store: ImageStore, label_studio: Web, kind: str, orientation: int
) -> None:
    """As EXIF 2.32 (4.6.4, tag 0x0112) says where a picture's first row and column are shown."""
    turned = {
        1: picture(),
        2: picture()[:, ::-1],
        3: np.rot90(picture(), 2),
        4: picture()[::-1],
        5: picture().swapaxes(0, 1),
        6: np.rot90(picture(), 1),
        7: np.rot90(picture(), 2).swapaxes(0, 1),
        8: np.rot90(picture(), -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    quality = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})

    shown = decode(store, label_studio, encoded(np.ascontiguousarray(turned), kind, exif=exif, **quality))

    assert shown.shape == picture().shape
    assert np.abs(shown.astype(int) - picture()).mean() < 3


def test_pictures_are_upright(store: ImageStore, label_studio: Web) -> None:
    """Label Studio shows EXIF orientation 6 turned by a quarter, so masks are of the turned picture."""
    exif = Image.Exif()
    exif[0x0112] = 6

    shown = decode(store, label_studio, encoded(picture(), "PNG", exif=exif))

    np.testing.assert_array_equal(shown, np.rot90(picture(), -1))


def test_transparency_is_white(store: ImageStore, label_studio: Web) -> None:
    rgba = np.zeros((4, 6, 4), dtype=np.uint8)
    rgba[:2] = (255, 0, 0, 255)

    shown = decode(store, label_studio, encoded(rgba))

    assert shown.shape == (4, 6, 3)
    assert shown[0, 0].tolist() == [255, 0, 0]
    assert shown[3, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA"])
def test_other_colour_modes_become_rgb(store: ImageStore, label_studio: Web, mode: str) -> None:
    file = BytesIO()
    Image.new("RGB", (6, 4), "white").convert(mode).save(file, "TIFF" if mode == "CMYK" else "PNG")

    shown = decode(store, label_studio, file.getvalue())

    assert shown.shape == (4, 6, 3)
    assert shown.dtype == np.uint8
    assert shown.min() > 250


def test_sixteen_bits_of_grey_keep_their_range(store: ImageStore, label_studio: Web) -> None:
    grey = np.linspace(0, 65535, 24, dtype=np.uint16).reshape(4, 6)

    shown = decode(store, label_studio, encoded(grey))

    np.testing.assert_array_equal(shown[:, :, 1], grey // 256)
