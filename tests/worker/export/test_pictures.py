"""Pictures of an export keep what does not depend on the way they lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from worker.export.pictures import ORIENTATION, read_header, write_picture

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("file_format", ["JPEG", "MPO", "PNG", "WEBP"])
def test_a_picture_that_is_turned_keeps_colours_and_quality(tmp_path: Path, file_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    picture = Image.fromarray(np.kron(noise, np.ones((4, 4, 1), dtype=np.uint8)))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    more = {"save_all": True, "append_images": [picture]} if file_format == "MPO" else {}
    stored = tmp_path / "stored"
    picture.save(stored, file_format, exif=exif.tobytes(), icc_profile=PROFILE, quality=95, **more)

    found = read_header(stored, "digest")
    write_picture(found, tmp_path / f"written{found.extension}")

    with Image.open(stored) as source, Image.open(tmp_path / f"written{found.extension}") as written:
        assert written.size == (96, 144)
        assert written.info["icc_profile"] == PROFILE
        expected = np.asarray(source.convert("RGB").rotate(-90, expand=True), np.int16)
        assert np.abs(np.asarray(written.convert("RGB"), np.int16) - expected).mean() < 4


def test_a_picture_is_turned_as_exif_says_only(tmp_path: Path) -> None:
    """Browsers, and so masks, do not follow an orientation in XMP."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    stored = tmp_path / "stored.jpg"
    Image.new("RGB", (30, 20)).save(stored, xmp=xmp)
    found = read_header(stored, "digest")
    write_picture(found, tmp_path / "written.jpg")
    assert (found.hw, found.is_upright) == ((20, 30), True)
    assert (tmp_path / "written.jpg").read_bytes() == stored.read_bytes()
