"""A batch that does not fit in a device's memory is answered in parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

import sspsam
from sspsam.results import Question
from sspsam.runtime.out_of_memory import in_halves


class Device:
    """Has memory for some rows at a time."""

    def __init__(self, most: int) -> None:
        self.most, self.sizes = most, list[int]()

    def run(self, rows: Sequence[int]) -> list[int]:
        self.sizes.append(len(rows))
        if len(rows) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [10 * row for row in rows]


@pytest.mark.parametrize(
    ("most", "sizes"), [(8, [7]), (4, [7, 3, 4]), (2, [7, 3, 1, 2, 4, 2, 2]), (3, [7, 3, 4, 2, 2])]
)
def test_the_batch_is_halved_until_it_fits(most: int, sizes: list[int]) -> None:
    device = Device(most)
    assert in_halves(device.run, range(7)) == [10 * row for row in range(7)]
    assert device.sizes == sizes


def test_one_row_that_is_too_much_is_an_error() -> None:
    device = Device(0)
    with pytest.raises(torch.OutOfMemoryError):
        in_halves(device.run, range(4))
    assert device.sizes == [4, 2, 1]


def test_other_errors_are_passed_on_at_once() -> None:
    with pytest.raises(ZeroDivisionError):
        in_halves(lambda rows: [1 // row for row in rows], range(4))


def test_images_and_views_are_answered_by_an_encoder_without_memory_for_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predictor = sspsam.Predictor.from_preset("ssp-sam-test", "cpu")
    pictures = np.random.default_rng(0).integers(0, 256, (3, 60, 80, 3), dtype=np.uint8)
    alone = [predictor.embed(picture) for picture in pictures]
    encode, sizes = predictor.image_encoder.forward, []

    def small(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(images)

    together = predictor.encode([predictor.prepare(picture) for picture in pictures])
    monkeypatch.setattr(predictor.image_encoder, "forward", small)
    found = predictor.encode([predictor.prepare(picture) for picture in pictures])

    assert sizes == [3, 1, 2, 1, 1]
    for one, same, batched in zip(alone, found, together, strict=True):
        assert same.clip_frame == batched.clip_frame == one.clip_frame
        torch.testing.assert_close(same.image_embedding, one.image_embedding)
        torch.testing.assert_close(batched.image_embedding, one.image_embedding, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(batched.patch_features, one.patch_features, rtol=1e-4, atol=1e-4)
        assert batched.image_embedding.untyped_storage().nbytes() == batched.image_embedding.nbytes
    assert predictor.encode([]) == []
    [answer] = predictor.decode([Question(found[0], "the dog")])
    assert answer.mask_logits.isfinite().all()
