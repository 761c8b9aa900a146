"""Reading and writing image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sspsam.images.image_io import PictureError, read_picture, write_picture

PIXELS = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
ORIENTATION = 0x0112


@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (1, PIXELS),
        (2, PIXELS[:, ::-1]),
        (3, PIXELS[::-1, ::-1]),
        (4, PIXELS[::-1]),
        (6, np.rot90(PIXELS, -1)),
        (8, np.rot90(PIXELS)),
    ],
)
def test_pictures_are_read_upright(tmp_path: Path, orientation: int, shown: npt.NDArray[np.uint8]) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), shown)


XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""
OTHER_TAG = 0x0131


@pytest.mark.parametrize("with_exif", [False, True])
@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.png"])
def test_pictures_are_not_turned_as_xmp_says(tmp_path: Path, name: str, with_exif: bool) -> None:
    """Browsers do not do so."""
    exif = Image.Exif()
    if with_exif:
        exif[OTHER_TAG] = "a program"
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    own = {"pnginfo": text} if name.endswith("png") else {"xmp": XMP}
    Image.fromarray(PIXELS).save(tmp_path / name, exif=exif, **own)

    assert read_picture(tmp_path / name).shape == PIXELS.shape


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA", "CMYK", "I;16"])
def test_pictures_of_any_kind_come_as_rgb(tmp_path: Path, mode: str) -> None:
    picture = Image.new("I;16", (8, 6), 256) if mode == "I;16" else Image.fromarray(PIXELS).convert(mode)
    picture.save(tmp_path / "a.tiff")
    read = read_picture(tmp_path / "a.tiff")
    assert (read.shape, read.dtype) == ((6, 8, 3), np.uint8)


def test_palette_pictures_come_as_rgb(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).convert("P").save(tmp_path / "a.gif")
    assert read_picture(tmp_path / "a.gif").shape == (6, 8, 3)


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="there is no image"):
        read_picture(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(PictureError, match="not an image in a supported format"):
        read_picture(tmp_path / "text.png")
    with pytest.raises(PictureError, match="cannot be read"):
        read_picture(tmp_path)
    Image.fromarray(np.tile(PIXELS, (20, 20, 1))).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    with pytest.raises(PictureError, match="cannot be read"):
        read_picture(tmp_path / "cut.jpg")


def test_a_written_picture_reads_back(tmp_path: Path) -> None:
    write_picture(Image.fromarray(PIXELS), tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), PIXELS)


@pytest.mark.parametrize("name", ["a.txt", "missing/a.png"])
def test_a_place_where_none_can_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(PictureError, match="cannot be written"):
        write_picture(Image.fromarray(PIXELS), tmp_path / name)
