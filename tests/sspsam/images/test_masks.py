"""Mask codecs against label_studio_sdk's converter and pycocotools."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sspsam.images.brush_rle import brush_rle_to_mask, mask_to_brush_rle
from sspsam.images.masks import (
    BoolMask,
    MaskFormatError,
    coco_rle_iou,
    coco_rle_to_mask,
    mask_to_box_xyxy,
    mask_to_coco_rle,
    merge_coco_rles,
)


def _reference() -> ModuleType:
    """The converter's module for brush masks alone: with its package, NLTK and SciPy are imported."""
    package = find_spec("label_studio_sdk")
    assert package is not None
    assert package.origin is not None
    spec = spec_from_file_location("brush", Path(package.origin).parent / "converter" / "brush.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = _reference()


def _filled(*boxes: tuple[int, int, int, int], hw: tuple[int, int] = (48, 64)) -> BoolMask:
    mask = np.zeros(hw, dtype=np.bool_)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] ^= True
    return mask


def _ragged(height: int, width: int, grain: int, seed: int = 3) -> BoolMask:
    noise = np.random.default_rng(seed).random((height // grain + 2, width // grain + 2))
    smooth = np.kron(noise, np.ones((grain, grain)))[:height, :width]
    jitter = np.random.default_rng(seed + 1).random((height, width)) * 0.2
    return np.asarray(smooth + jitter > 0.6)


MASKS: dict[str, Callable[[], BoolMask]] = {
    "hole": lambda: _filled((5, 5, 40, 60), (12, 20, 30, 40)),
    "parts": lambda: _filled((2, 2, 9, 9), (20, 30, 31, 50), (44, 60, 47, 63)),
    "one pixel": lambda: _filled((17, 33, 18, 34)),
    "first pixel": lambda: _filled((0, 0, 1, 1)),
    "last pixel": lambda: _filled((47, 63, 48, 64)),
    "empty": lambda: _filled(),
    "full": lambda: _filled((0, 0, 48, 64)),
    "touches the border": lambda: _filled((0, 0, 48, 10), (40, 0, 48, 64)),
    "checkerboard": lambda: np.indices((30, 31)).sum(axis=0) % 2 == 0,
    "single pixel image": lambda: np.ones((1, 1), dtype=np.bool_),
    "one row": lambda: _filled((0, 3, 1, 90), hw=(1, 301)),
    "one column": lambda: _filled((3, 0, 90, 1), hw=(301, 1)),
    "runs beyond 16 bits": lambda: _filled((300, 0, 301, 5), hw=(700, 500)),
    "run of exactly 65536 elements": lambda: _filled((0, 0, 128, 128), hw=(256, 128)),
    "ragged": lambda: _ragged(211, 307, 7),
    "noise": lambda: np.random.default_rng(0).random((97, 101)) > 0.5,
    "many segments": lambda: _ragged(900, 1100, 3),
}


@pytest.fixture(params=MASKS.values(), ids=MASKS.keys())
def mask(request: pytest.FixtureRequest) -> BoolMask:
    made: BoolMask = request.param()
    return made


def test_brush_rle_equals_label_studio_byte_for_byte(mask: BoolMask) -> None:
    assert mask_to_brush_rle(mask) == reference.mask2rle(mask.astype(np.uint8) * 255)


def test_brush_rle_round_trip(mask: BoolMask) -> None:
    decoded = brush_rle_to_mask(mask_to_brush_rle(mask), *mask.shape)

    assert decoded.dtype == np.bool_
    np.testing.assert_array_equal(decoded, mask)


def test_coco_rle_equals_pycocotools(mask: BoolMask) -> None:
    rle = mask_to_coco_rle(mask)

    np.testing.assert_array_equal(coco_rle_to_mask(rle), mask)
    np.testing.assert_array_equal(coco_mask.decode(rle), mask)
    assert coco_mask.area(rle) == mask.sum()


@pytest.mark.parametrize("width", range(1, 40))
def test_brush_rle_padding_equals_label_studio(width: int) -> None:
    """The last byte's unused bits, and the reference's whole spare byte when there are none."""
    mask = _filled((0, width // 2, 1, width), hw=(1, width))

    assert mask_to_brush_rle(mask) == reference.mask2rle(mask.astype(np.uint8) * 255)


def _browser_rle(rgba: np.ndarray) -> list[int]:
    """Writes tokens as the editor's encoder does: single values as literals, runs as runs."""
    bits = f"{rgba.size:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    flat = rgba.ravel().tolist()
    start = 0
    while start < len(flat):
        end = start
        if start + 1 < len(flat) and flat[start + 1] == flat[start]:
            while end < len(flat) and flat[end] == flat[start] and end - start < 256:
                end += 1
            bits += f"110{end - start - 1:08b}{flat[start]:08b}"
        else:
            while (
                end < len(flat)
                and end - start < 200
                and not (end + 1 < len(flat) and flat[end + 1] == flat[end])
            ):
                end += 1
            bits += f"010{end - start - 1:08b}" + "".join(f"{value:08b}" for value in flat[start:end])
        start = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


@pytest.mark.parametrize("seed", range(4))
def test_decodes_what_a_brush_leaves(seed: int) -> None:
    """Coloured RGBA with antialiased alpha, written with literal tokens: only alpha above 127 counts."""
    rng = np.random.default_rng(seed)
    alpha = rng.integers(0, 256, (63, 49), dtype=np.uint8)
    alpha[10:30, 5:40] = 255
    rgba = np.dstack(
        [np.full_like(alpha, 255), rng.integers(0, 2, alpha.shape, dtype=np.uint8) * 59, alpha * 0, alpha]
    )
    rle = _browser_rle(rgba)

    np.testing.assert_array_equal(
        reference.decode_rle(rle).reshape(rgba.shape), rgba
    )  # our writer is a fair one
    np.testing.assert_array_equal(brush_rle_to_mask(rle, *alpha.shape), alpha > 127)


def test_decodes_other_field_sizes() -> None:
    """The header names the field sizes; a stream with two bits for all of them reads the same way."""
    bits = f"{8:032b}{7:05b}" + f"{1:04b}" * 4
    bits += "100" + "11" + f"{255:08b}" + "101" + "11" + f"{0:08b}"
    bits += "0" * (-len(bits) % 8)
    rle = [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]

    assert brush_rle_to_mask(rle, 1, 2).tolist() == [[True, False]]


def test_non_zero_numbers_are_mask() -> None:
    values = np.array([[0, 1], [128, 255]], dtype=np.uint8)

    assert mask_to_brush_rle(values) == mask_to_brush_rle(values > 0)


@pytest.mark.parametrize(
    ("rle", "hw", "reason"),
    [
        ([], (4, 4), "cut"),
        ([1, 2, 3], (4, 4), "cut"),
        (12, (4, 4), "not a list of numbers"),
        (["a", "b"], (4, 4), "not a list of numbers"),
        ([0, 0, 0, 64, 300, 0, 0, 0], (4, 4), "not a list of numbers"),
        ([0, 0, 0, -1, 3, 0, 0, 0], (4, 4), "not a list of numbers"),
        (mask_to_brush_rle(np.ones((4, 4))), (5, 4), "an image of 5 x 4"),
        (mask_to_brush_rle(_ragged(40, 40, 3))[:-20], (40, 40), "cut"),
        (reference.encode_rle(np.zeros(16, dtype=np.uint8), wordsize=4), (2, 2), "4-bit words"),
    ],
    ids=[
        "nothing",
        "no header",
        "a number",
        "no numbers",
        "large",
        "negative",
        "other size",
        "cut",
        "other words",
    ],
)
def test_bad_brush_rle_is_refused(rle: list[int], hw: tuple[int, int], reason: str) -> None:
    with pytest.raises(MaskFormatError, match=reason):
        brush_rle_to_mask(rle, *hw)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (5,), (2, 3, 4)])
def test_arrays_that_are_no_mask_are_refused(shape: tuple[int, ...]) -> None:
    for encode in (mask_to_brush_rle, mask_to_coco_rle, mask_to_box_xyxy):
        with pytest.raises(MaskFormatError):
            encode(np.zeros(shape))


@pytest.mark.parametrize(
    "rle",
    [
        {},
        {"size": [2, 2]},
        {"size": [2, 2], "counts": None},
        {"size": "ab", "counts": ""},
        {"size": [2, 2], "counts": "~~~"},
    ],
)
def test_bad_coco_rle_is_refused(rle: dict[str, object]) -> None:
    with pytest.raises(MaskFormatError):
        coco_rle_to_mask(rle)


def test_uncompressed_coco_rle() -> None:
    assert coco_rle_to_mask({"size": [2, 2], "counts": [1, 2, 1]}).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([(5, 7, 12, 20)], (7.0, 5.0, 20.0, 12.0)),
        ([(5, 7, 6, 8)], (7.0, 5.0, 8.0, 6.0)),
        ([(0, 0, 3, 3), (40, 60, 48, 64)], (0.0, 0.0, 64.0, 48.0)),
        ([], (0.0, 0.0, 0.0, 0.0)),
    ],
    ids=["one part", "one pixel", "two parts", "empty"],
)
def test_box(boxes: list[tuple[int, int, int, int]], expected: tuple[float, ...]) -> None:
    assert mask_to_box_xyxy(_filled(*boxes)) == expected


def test_union_of_rles() -> None:
    """Equal to the encoded union, so that masks can be compared by their RLE."""
    rng = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.9, 1.0):
        masks = [rng.random((23, 31)) < share for _ in range(3)]
        assert merge_coco_rles([mask_to_coco_rle(mask) for mask in masks]) == mask_to_coco_rle(
            np.any(masks, axis=0)
        )
        assert merge_coco_rles([mask_to_coco_rle(masks[0])]) == mask_to_coco_rle(masks[0])
    with pytest.raises(MaskFormatError):
        merge_coco_rles([mask_to_coco_rle(masks[0]), mask_to_coco_rle(masks[0][:5])])


def test_iou_of_rles() -> None:
    one, other = MASKS["hole"](), MASKS["parts"]()
    expected = (one & other).sum() / (one | other).sum()

    assert expected > 0
    assert coco_rle_iou(mask_to_coco_rle(one), mask_to_coco_rle(other)) == pytest.approx(expected)
    assert coco_rle_iou(mask_to_coco_rle(one), mask_to_coco_rle(one)) == 1
    assert coco_rle_iou(mask_to_coco_rle(one), mask_to_coco_rle(one[:40])) == 0, "of another size"
    uncompressed = {"size": [2, 2], "counts": [1, 2, 1]}
    assert coco_rle_iou(uncompressed, mask_to_coco_rle(np.array([[0, 1], [1, 0]]))) == 1
    assert coco_rle_iou(uncompressed, mask_to_coco_rle(np.array([[0, 1], [1, 1]]))) == pytest.approx(2 / 3)
    with pytest.raises(MaskFormatError):
        coco_rle_iou({"size": [2, 2]}, uncompressed)
