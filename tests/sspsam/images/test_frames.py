"""Frames: coordinates and masks survive the round trip through the model's squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from segment_anything.utils.transforms import ResizeLongestSide

from sspsam.images import frames

SIZES = [(480, 640), (640, 480), (100, 1000), (1, 7), (333, 334), (2048, 1536)]


@pytest.mark.parametrize("original_hw", SIZES)
def test_resized_size_is_sams(original_hw: tuple[int, int]) -> None:
    assert frames.resized_hw(original_hw, 1024) == ResizeLongestSide.get_preprocess_shape(*original_hw, 1024)


@pytest.mark.parametrize("original_hw", SIZES)
def test_a_box_survives_the_clip_canvas(original_hw: tuple[int, int]) -> None:
    height, width = original_hw
    _, frame = frames.image_to_clip(np.zeros((height, width, 3), np.uint8), 224)
    box = (0.1 * width, 0.2 * height, 0.7 * width, 0.9 * height)
    assert frame.box_to_original(frame.box_from_original(box)) == pytest.approx(box, abs=1e-3)


def test_the_clip_picture_is_centred_and_padded_after_normalising() -> None:
    canvas, frame = frames.image_to_clip(np.full((100, 200, 3), 255, np.uint8), 224)
    assert (frame.top, frame.left, frame.resized_hw) == (56, 0, (112, 224))
    assert canvas[:, :56].abs().max() == 0
    assert canvas[:, 56:168].min() > 1


def test_random_placement_stays_on_the_canvas() -> None:
    generator = torch.Generator().manual_seed(0)
    image = np.full((100, 200, 3), 255, np.uint8)
    placed = [frames.image_to_clip(image, 224, generator=generator)[1] for _ in range(200)]
    assert {frame.left for frame in placed} == {0}
    assert min(frame.top for frame in placed) >= 0
    assert max(frame.top for frame in placed) + 112 <= 224
    assert len({frame.top for frame in placed}) > 50


@pytest.mark.parametrize("original_hw", [(480, 640), (640, 480), (97, 311), (1500, 1000)])
def test_masks_come_back_as_sam_brings_them_back(original_hw: tuple[int, int]) -> None:
    logits = F.interpolate(
        torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)), 256, mode="bicubic"
    )
    height, width = frames.resized_hw(original_hw, 1024)
    expected = F.interpolate(logits, (1024, 1024), mode="bilinear", align_corners=False)[..., :height, :width]
    expected = F.interpolate(expected, original_hw, mode="bilinear", align_corners=False)[:, 0] > 0
    actual = frames.sam_logits_to_original(logits, original_hw) > 0
    assert actual.shape == expected.shape
    assert (actual != expected).float().mean() < 0.01
    one = frames.sam_logits_to_mask(logits[0, 0].numpy(), original_hw, 0.0)
    assert one.shape == original_hw
    assert (one != actual[0].numpy()).mean() < 1e-4


@pytest.mark.parametrize("original_hw", [(3000, 4000), (5003, 1501), (2, 6000), (60, 5000), (2000, 5)])
@pytest.mark.parametrize("threshold", [0.0, -0.7])
def test_large_masks_are_those_of_all_pixels_logits(
    original_hw: tuple[int, int], threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "LARGE_PX", 1000)
    coarse = np.random.default_rng(0).standard_normal((12, 12)).astype(np.float32)
    logits = np.repeat(np.repeat(coarse, 5, axis=0), 5, axis=1)[:58, :58]
    expected = frames.sam_logits_to_pixels(logits, original_hw) > threshold
    actual = frames.sam_logits_to_mask(logits, original_hw, threshold)
    assert actual.shape == original_hw
    assert np.count_nonzero(actual != expected) <= 1e-6 * actual.size, "rounding at the edge alone"


@pytest.mark.parametrize("original_hw", [(480, 640), (200, 90)])
def test_a_mask_survives_the_sam_frame(original_hw: tuple[int, int]) -> None:
    mask = np.zeros(original_hw, bool)
    mask[20:90, 30:80] = True
    there = frames.mask_to_sam(mask, 320)
    back = frames.sam_logits_to_original(there[None, None] - 0.5, original_hw)[0].numpy() > 0
    assert (back & mask).sum() / (back | mask).sum() > 0.93


def test_pixels_are_normalised_as_in_open_clip() -> None:
    assert frames.CLIP_MEAN == OPENAI_DATASET_MEAN
    assert frames.CLIP_STD == OPENAI_DATASET_STD
