"""Splitting of a phrase's mask into its objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

import sspsam
from sspsam import ImageEmbedding
from sspsam.images import frames
from sspsam.images.frames import BoolMask, ClipFrame
from sspsam.objects.splitting import MOST_SEEDS, find_seeds, split_mask
from sspsam.results import Decoded, Question

SIDE = 64
"""Of SAM's mask grid, cells."""
HW = (96, 128)
SCORE = 0.5
OBJECT_SCORE = 0.75


@dataclass
class ObjectDecoder:
    """A SAM that knows the objects of an image: at each point, it finds the object that the point is on."""

    objects: Sequence[BoolMask]
    batches: list[int] = field(default_factory=list)

    def __call__(self, questions: Sequence[Question]) -> list[Decoded]:
        self.batches.append(len(questions))
        assert all(question.prompt_shape == (False, 1, False) for question in questions)
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> Decoded:
        x, y, part = np.asarray(question.points)[0]
        assert part == 1
        hit = [thing for thing in self.objects if thing[int(y), int(x)]]
        grid = frames.mask_to_sam(hit[0] if hit else np.zeros(HW, bool), SIDE)
        return Decoded(question, 10 * (grid - 0.5), OBJECT_SCORE, None)


def embedding_of(hw: tuple[int, int] = HW) -> ImageEmbedding:
    frame = ClipFrame(hw, (24, 32), 0, 0, 32)
    return ImageEmbedding(hw, torch.zeros(1, 4, SIDE // 4, SIDE // 4), torch.zeros(1, 16, 4), frame)


def box(x0: int, y0: int, x1: int, y1: int) -> BoolMask:
    mask = np.zeros(HW, bool)
    mask[y0:y1, x0:x1] = True
    return mask


LEFT, MIDDLE, RIGHT = box(10, 20, 40, 60), box(40, 20, 70, 60), box(90, 20, 120, 60)
CUT = box(10, 20, 30, 60) | box(60, 20, 80, 60)
"""One object behind another that is not part of the answer."""


@pytest.mark.parametrize(
    "objects",
    [[LEFT], [LEFT, RIGHT], [LEFT, MIDDLE], [LEFT, MIDDLE, RIGHT], [CUT], [CUT, RIGHT]],
    ids=["one", "apart", "touching", "touching and apart", "cut by an occluder", "cut, and another"],
)
def test_each_object_is_an_instance(objects: list[BoolMask]) -> None:
    decoder = ObjectDecoder(objects)

    found = split_mask(embedding_of(), np.any(objects, axis=0), SCORE, decoder)

    assert len(found) == len(objects)
    for instance, thing in zip(found, objects, strict=True):  # both from the left
        both, either = (instance.mask & thing).sum(), (instance.mask | thing).sum()
        assert both / either > 0.95
        assert instance.score == pytest.approx(SCORE if len(objects) == 1 else OBJECT_SCORE)
    assert len(decoder.batches) <= 1


@pytest.mark.parametrize(("common", "number", "found"), [(4, None, 2), (4, 1, 1), (10, None, 1)])
def test_who_asks_for_several_things_rather_sees_two(common: int, number: int | None, found: int) -> None:
    """Two halves of a mask, and masks of SAM that cover `common` columns of the other half, too."""
    halves = [box(10, 20, 40 + common, 60), box(40 - common, 20, 70, 60)]
    found_objects = split_mask(embedding_of(), LEFT | MIDDLE, SCORE, ObjectDecoder(halves), number)
    assert len(found_objects) == found


@pytest.mark.parametrize("seed", range(5))
def test_objects_are_disjoint_and_their_union_is_the_mask(seed: int) -> None:
    """Also with specks, which SAM is not asked about, and with masks that do not follow the answer."""
    rng = np.random.default_rng(seed)
    mask = LEFT | MIDDLE | RIGHT | (rng.random(HW) < 0.02)
    guesses = [box(x, y, x + 30, y + 40) for x, y in rng.integers(0, 60, (4, 2))]

    found = split_mask(embedding_of(), mask, SCORE, ObjectDecoder(guesses))

    assert (np.sum([instance.mask for instance in found], axis=0) == mask).all()
    assert all(instance.mask.any() for instance in found)


@pytest.mark.parametrize(
    "mask",
    [box(0, 0, 0, 0), box(5, 5, 6, 6), box(0, 0, 128, 96), box(127, 0, 128, 96)],
    ids=["empty", "one pixel", "everything", "a line at the border"],
)
def test_extreme_masks_are_at_most_one_object(mask: BoolMask) -> None:
    found = split_mask(embedding_of(), mask, SCORE, ObjectDecoder([box(0, 0, 128, 96)]))

    assert len(found) == int(mask.any())
    assert all((instance.mask == mask).all() for instance in found)


def test_the_number_of_prompts_is_bounded() -> None:
    mask = np.zeros((400, 400), bool)
    for row in range(20, 400, 40):
        for column in range(20, 400, 40):
            mask[row - 10 : row + 10, column - 10 : column + 10] = True

    seeds = find_seeds(mask, SIDE)

    assert len(seeds.cells_xy) == MOST_SEEDS
    x, y, part = seeds.points((400, 400)).T
    assert mask[y.astype(int), x.astype(int)].all()
    assert (part == 1).all()


def test_a_predictor_splits_its_answers() -> None:
    """Single points share a pass, which gives what each gives alone."""
    predictor = sspsam.Predictor.from_preset("ssp-sam-test", "cpu")
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    embedding = predictor.embed(image)
    [referent] = predictor.predict(embedding, ["two dogs"])
    [clicked] = predictor.predict(embedding, ["two dogs"], points=[[60, 40, 1]])

    assert not referent.no_target
    assert (np.sum([instance.mask for instance in referent.instances], axis=0) == referent.mask).all()
    assert [instance.score for instance in clicked.instances] == [clicked.score]
    points = [Question(embedding, "", np.array([[x, 40, 1]])) for x in (20, 60, 100)]
    together = predictor.decode(points)
    for question, decoded in zip(points, together, strict=True):
        assert decoded.question is question
        [alone] = predictor.decode([question])
        torch.testing.assert_close(decoded.mask_logits, alone.mask_logits, atol=1e-4, rtol=1e-4)
