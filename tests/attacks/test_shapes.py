"""Shapes of regions, gestures and masks: hostile ones are refused, or read in bounded time and memory."""

from __future__ import annotations

import base64
import json
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from backend.assistant.annotation_masks import MaskReader, Room
from backend.errors import LabelingConfigError
from backend.labelstudio import annotations
from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.labelstudio.regions.controls import MOST_NAMES
from sspsam.images.few_points import mask_to_parts
from sspsam.images.masks import MaskFormatError
from sspsam.images.png_masks import PREFIX, png_url_to_runs
from sspsam.images.polygons import mask_to_polygons
from tests.attacks.growth import grows_faster_than_linear
from tests.attacks.test_bounds import bomb, bounded, client, region
from tests.backend.editor import click, predict_body, task

__all__ = ["client"]

Json = dict[str, Any]
CONFIG = LabelingConfig.parse(RECOMMENDED_CONFIG)
LARGE = 10**400
GOOD = region(1, 8, 8, bomb(8, 8))
MOST_S = 2.0


def form_of(tag: str) -> LabelingConfig:
    label = '<Label value="a"/>'
    image = '<Image name="image" value="$image"/>'
    return LabelingConfig.parse(f'<View>{image}<{tag} name="mask" toName="image">{label}</{tag}></View>')


FORMS = {tag: form_of(tag) for tag in ("PolygonLabels", "RectangleLabels", "BitmaskLabels")}


def result(tag: str, number: int, value: Json, height: int = 100, width: int = 100) -> Json:
    return {**region(number, height, width, []), "type": tag.lower(), "value": value}


def polygon(number: int, points: Any, height: int = 100, width: int = 100) -> Json:
    return result("PolygonLabels", number, {"points": points, "closed": True}, height, width)


def rectangle(number: int, **value: Any) -> Json:
    return result("RectangleLabels", number, {"x": 10, "y": 10, "width": 20, "height": 20, **value})


def ids(content: annotations.AnnotationContent) -> list[str]:
    return [each.region_id for each in (*content.regions, *content.boxes)]


SIZES = [(10**6, 10**6), (-(10**9), 10**9), (-8, 8), (0, 8), (8, 10**12), (10**300, 10**300), (1e300, 1e300)]


@pytest.mark.parametrize("size", SIZES)
def test_a_mask_of_any_size_takes_no_room_from_others(size: tuple[int, int]) -> None:
    """A large one took all of it, and a negative one made more."""
    bad, many = (
        region(0, *size, bomb(8, 8)),
        [region(number, 100, 100, bomb(100, 100)) for number in range(1, 120)],
    )
    assert ids(read_annotation({"result": [bad, GOOD]}, CONFIG)) == ["region1"]
    content = read_annotation({"result": [bad, *many]}, CONFIG, max_pixels=10_000)
    assert len(content.regions) == annotations.MASKS_PER_IMAGE


NO_NUMBERS = [LARGE, 1e308, -1e308, float("inf"), float("nan"), "x", [], {}, None, "9" * 5000, [[1]], True]


@pytest.mark.parametrize("field", ["x", "y", "width", "height", "rotation"])
def test_rectangles_of_any_number(field: str) -> None:
    for value in NO_NUMBERS:
        results = [rectangle(0, **{field: value}), rectangle(1)]
        assert "region1" in ids(read_annotation({"result": results}, FORMS["RectangleLabels"])), value
        assert len(MaskReader().masks(results, FORMS["RectangleLabels"])) >= 1, value


@pytest.mark.parametrize("value", [*NO_NUMBERS, [1], [1, 2, 3], ["a", "b"]])
def test_polygons_of_any_number(value: Any) -> None:
    good = [[0, 0], [50, 0], [50, 50]]
    for points in ([[value, 1], *good], [value, *good], value, [*good] * 50_000):
        content = read_annotation({"result": [polygon(0, points), polygon(1, good)]}, FORMS["PolygonLabels"])
        assert "region1" in ids(content)


def zigzag(count: int) -> list[list[float]]:
    return [[number * 100 / count, 100 * (number % 2)] for number in range(count)]


@pytest.mark.slow
def test_the_polygons_of_an_annotation_are_bounded_together() -> None:
    """200 points can cross two million rows: 100 of these took 21 s, and 10,000 are as easy to write."""
    result = [polygon(number, zigzag(200), 10_000, 1) for number in range(2000)]
    since_s = time.thread_time()
    content = read_annotation({"result": result}, FORMS["PolygonLabels"])
    assert time.thread_time() - since_s < 5 * MOST_S
    assert "no room" in content.problems[-1]


@pytest.mark.slow
def test_the_runs_of_an_annotation_are_bounded_together() -> None:
    result = [polygon(number, zigzag(2000), 1000, 1000) for number in range(60)]
    regions = read_annotation({"result": result}, FORMS["PolygonLabels"]).regions
    assert 0 < len(regions) < 60
    assert sum(each.runs.lengths.size for each in regions) <= annotations.RUNS_PER_ANNOTATION


def png(height: int, width: int, row: bytes, *chunks: tuple[bytes, bytes]) -> str:
    """A PNG of 1 bit per pixel whose rows are equal."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress((b"\0" + row) * height, 9)) + chunk(b"IEND", b"")
    extra = b"".join(chunk(name, data) for name, data in (*chunks, (b"tRNS", b"\0\0")))
    return PREFIX + base64.b64encode(b"\x89PNG\r\n\x1a\n" + head + extra + body).decode()


def test_a_pattern_in_a_bitmask_takes_no_memory() -> None:
    """11 KB of PNG became 8 million runs, and 100 of them were kept at once."""
    side = 4096
    pattern = png(side, side, b"\x55" * (side // 8))
    assert len(pattern) < 20_000
    with bounded(10 * side**2 // 2**20), pytest.raises(MaskFormatError, match="runs"):
        png_url_to_runs(pattern, side, side)
    small = [
        result("BitmaskLabels", n, {"imageDataURL": png(1024, 1024, b"\x55" * 128)}, 1024, 1024)
        for n in range(30)
    ]
    content = read_annotation({"result": small}, FORMS["BitmaskLabels"])
    assert 0 < len(content.regions) < 30
    assert sum(each.runs.lengths.size for each in content.regions) <= annotations.RUNS_PER_ANNOTATION


def compressed(count: int) -> bytes:
    return zlib.compress(b"A" * count, 1)


CHUNKS: dict[str, Callable[[], list[tuple[bytes, bytes]]]] = {
    "text": lambda: [(b"zTXt", b"k\0\0" + compressed(2**28))],
    "texts": lambda: [(b"iTXt", b"k%d\0\1\0\0\0" % n + compressed(2**20)) for n in range(100)],
    "profile": lambda: [(b"iCCP", b"k\0\0" + compressed(2**28))],
    "animation": lambda: [(b"acTL", struct.pack(">II", 2**30, 0))],
    "palette": lambda: [(b"PLTE", b"x" * 10**6)],
    "a second header": lambda: [(b"IHDR", struct.pack(">IIBBBBB", 2**16, 2**16, 8, 6, 0, 0, 0))],
}
"""Made in the tests: compressing takes longer than reading all of this file's cases."""


@pytest.mark.parametrize("name", CHUNKS)
def test_chunks_of_a_bitmask_take_no_memory(name: str) -> None:
    url = png(8, 8, b"\xff", *CHUNKS[name]())
    with bounded(100), suppress(MaskFormatError):
        assert png_url_to_runs(url, 8, 8).height == 8


@pytest.mark.parametrize(
    "value", [{"rle": 10**11}, {"rle": "x"}, {"rle": {}}, {"rle": [[]]}, {"rle": None}, {"rle": [-1]}]
)
def test_a_number_is_no_brush_mask(value: Json) -> None:
    """`bytes(10**11)` asks for 100 GB, and a click on such a draft hashed them."""
    with bounded(4):
        found = MaskReader().masks([{**region(0, 8, 8, []), "value": value}, GOOD], CONFIG)
    assert [mask.region_id for mask in found] == ["region1"]


@pytest.mark.slow
def test_all_annotations_of_a_task_are_bounded_together() -> None:
    """Each had 200 masks and 1.1 gigapixels of its own."""
    reader, room = MaskReader(), Room()
    drafts = [
        [region(100 * d + n, 4096, 4096, bomb(4096, 4096)[:-n] or []) for n in range(1, 40)] for d in range(8)
    ]
    since_s = time.thread_time()
    for draft in drafts:
        reader.masks(draft, CONFIG, room)
    assert room.masks == 0 or room.pixels < 4096**2
    assert time.thread_time() - since_s < 2 * MOST_S


BOX = {"from_name": "box", "type": "rectanglelabels"}
BOX_TAG = '<RectangleLabels name="box" toName="image" smart="true"><Label value="refine"/></RectangleLabels>'
WITH_BOX = RECOMMENDED_CONFIG.replace("<Image ", f"{BOX_TAG}<Image ")


@pytest.mark.parametrize(
    "field", ["x", "width", "rotation", "original_width", "original_height", "id", "is_positive"]
)
@pytest.mark.parametrize("kind", ["click", "box"])
def test_gestures_of_any_value_are_answered(client: FlaskClient, kind: str, field: str) -> None:
    """A coordinate of 400 digits was a 500, and so was a rotated box on an image without a width."""
    for value in NO_NUMBERS:
        gesture = click(1, 1, "g")
        if kind == "box":
            where = {"x": 1, "y": 1, "width": 2, "height": 2, "rotation": 30, "rectanglelabels": ["refine"]}
            gesture |= {**BOX, "value": where}
        target = gesture["value"] if field in gesture["value"] or field == "rotation" else gesture
        target[field] = value
        body = json.dumps(predict_body([task()], {"result": [gesture]}, WITH_BOX))
        answer = client.post("/predict", data=body, content_type="application/json")
        assert answer.status_code == 200, value
        assert "error inside" not in answer.text, value


PATTERNS = {
    "every second pixel": lambda n: np.add.outer(np.arange(n), np.arange(n)) % 2 == 0,
    "dots": lambda n: np.add.outer(np.arange(n) % 2 * 2, np.arange(n) % 2) == 0,
    "holes": lambda n: np.add.outer(np.arange(n) % 2 * 2, np.arange(n) % 2) != 0,
    "a comb": lambda n: np.add.outer(np.arange(n) == 0, np.arange(n) % 2 == 0),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_outlines_of_patterns_take_linear_time(name: str) -> None:
    """500 x 500 pixels took 5 s, and 14 s for the polygons of a form."""
    make = PATTERNS[name]
    for outlines in (mask_to_polygons, mask_to_parts):
        assert not grows_faster_than_linear(lambda n, to=outlines: to(make(int((8 * n) ** 0.5))))
    since_s = time.thread_time()
    assert mask_to_parts(make(300)) is not None
    assert time.thread_time() - since_s < MOST_S


def test_addresses_that_are_put_together_are_bounded() -> None:
    """A form of 200 KB and a task of 20 KB made an address of 2 GB."""
    form = '<View><Image name="image" value="https://a/{}"/><BrushLabels name="mask" toName="image"/></View>'
    image = LabelingConfig.parse(form.format("$a" * 100_000)).image
    assert image is not None
    with bounded(20):
        assert image.of({"a": "x" * 20_000}) is None
    plain = LabelingConfig.parse(form.format("$a.b/$c[0]")).image
    assert plain is not None
    assert plain.of({"a": {"b": "x"}, "c": ["y"]}) == "https://a/x/y"
    odd_tasks: list[Any] = [
        {"a": [], "c": {}},
        {"a": {"b": []}, "c": ["y"]},
        {"a": {"b": {}}, "c": [1]},
        [],
        {"a": None},
    ]
    for odd in odd_tasks:
        assert plain.of(odd) is None


def test_the_names_of_labels_are_bounded() -> None:
    label = f'<Label value="x" predicted_values="{",".join(["abc"] * MOST_NAMES)}"/>'
    form = f'<View><Image name="image" value="$image"/><BrushLabels name="n">{label}</BrushLabels></View>'
    with pytest.raises(LabelingConfigError, match="names"):
        LabelingConfig.parse(form)
