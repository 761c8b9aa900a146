"""The objects of phrases that say something about their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from sspsam.images import frames
from sspsam.images.frames import BoolMask
from sspsam.objects.phrase_objects import objects_of
from sspsam.results import Decoded, Instance, Question, Referent
from tests.sspsam.objects.test_splitting import HW, LEFT, MIDDLE, RIGHT, SIDE, box, embedding_of

NEAR_RIGHT = box(88, 18, 118, 58)
"""Another mask of RIGHT: the same by SAME."""


@dataclass
class KnowingModel:
    """Answers phrases with logits, and points with the object that they are on."""

    phrases: Mapping[str, Sequence[tuple[BoolMask, float]]]
    """Phrase -> masks with their logits."""
    objects: Sequence[BoolMask] = (LEFT, MIDDLE, RIGHT)
    asked: list[str] = field(default_factory=list)

    def decode(self, questions: Sequence[Question]) -> list[Decoded]:
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> Decoded:
        if question.phrase:
            self.asked.append(question.phrase)
            parts = self.phrases[question.phrase]
        else:
            x, y, _ = np.asarray(question.points)[0]
            parts = [(thing, 8.0) for thing in self.objects if thing[int(y), int(x)]]
        grid = torch.full((SIDE, SIDE), -8.0)
        for mask, logit in parts:
            grid[frames.mask_to_sam(mask, SIDE) > 0.5] = logit
        return Decoded(question, grid, 0.7, None)

    def finish(self, decoded: Decoded) -> Referent:
        mask = frames.sam_logits_to_mask(decoded.mask_logits.numpy(), HW, 0.0)
        return Referent(decoded.question.phrase, mask, 0.7, (0, 0, 1, 1), not mask.any())

    def objects_of(self, phrase: str, mask: BoolMask) -> list[Instance]:
        referent = Referent(phrase, mask, 0.7, (0, 0, 1, 1), not mask.any())
        return objects_of(embedding_of(), referent, self.decode, self.finish)


def masks_are(found: Sequence[Instance], expected: Sequence[BoolMask]) -> bool:
    ious = [(a.mask & b).sum() / (a.mask | b).sum() for a, b in zip(found, expected, strict=True)]
    return all(iou > 0.9 for iou in ious)


@pytest.mark.parametrize("weak_logit", [1.0, 6.0])
def test_what_the_phrase_fits_much_less_is_left_out(weak_logit: float) -> None:
    model = KnowingModel({"dogs": [(LEFT, 6.0), (RIGHT, weak_logit)]})

    found = model.objects_of("dogs", LEFT | RIGHT)

    assert masks_are(found, [LEFT] if weak_logit == 1 else [LEFT, RIGHT])


def test_a_number_leaves_out_the_weakest() -> None:
    shown = LEFT | MIDDLE | RIGHT
    model = KnowingModel(
        {phrase: [(LEFT, 5), (MIDDLE, 4), (RIGHT, 6)] for phrase in ("both dogs", "all dogs")}
    )

    assert masks_are(model.objects_of("all dogs", shown), [LEFT, MIDDLE, RIGHT])
    assert masks_are(model.objects_of("both dogs", shown), [LEFT, RIGHT])


def test_a_number_keeps_objects_that_look_like_one_apart() -> None:
    """SAM sees one object at every point; the phrase says that there are two."""
    both = box(10, 20, 40, 60) | box(40, 34, 46, 46) | box(46, 20, 76, 60)
    model = KnowingModel({phrase: [(both, 6)] for phrase in ("both dogs", "the dogs")}, [both])

    assert len(model.objects_of("the dogs", both)) == 1
    assert len(model.objects_of("both dogs", both)) == 2


def test_different_things_are_asked_for_one_by_one() -> None:
    """The mask of both misses the spoon, and shows something else; of the cup it has the better outline."""
    phrase = "the cup and the spoon"
    cup, spoon = [(NEAR_RIGHT, 6.0)], [(LEFT, 6.0)]
    model = KnowingModel({phrase: [(MIDDLE, 1), (RIGHT, 5)], "the cup": cup, "the spoon": spoon})

    found = model.objects_of(phrase, RIGHT)

    assert masks_are(found, [LEFT, RIGHT])
    assert (found[1].mask == RIGHT).all(), "the sharpened mask"
    assert model.asked == [phrase, "the cup", "the spoon"]


@pytest.mark.parametrize("spoon", [[], [(RIGHT, 5.0)]], ids=["not found", "the same"])
def test_things_that_are_not_all_found_are_split_as_one_mask(spoon: list[tuple[BoolMask, float]]) -> None:
    phrase = "the cup and the spoon"
    whole = [(LEFT, 5.0), (RIGHT, 5.0)]
    model = KnowingModel({phrase: whole, "the cup": [(RIGHT, 6.0)], "the spoon": spoon})

    assert masks_are(model.objects_of(phrase, LEFT | RIGHT), [LEFT, RIGHT])


def test_a_phrase_for_one_thing_is_not_split() -> None:
    model = KnowingModel({})

    (found,) = model.objects_of("a dog", LEFT | RIGHT)

    assert (found.mask == (LEFT | RIGHT)).all()
    assert model.objects_of("dogs", np.zeros(HW, bool)) == []
    assert model.asked == []
