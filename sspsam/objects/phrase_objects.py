"""The objects of a phrase: its mask, split with what the phrase says about their number.

The rule:

1. A phrase for one thing ("a carrot") has one object: the mask.
2. A phrase that joins different things ("the cup and the spoon") is asked for each of them. If all are found,
   and differ, each has the objects of its own answer, sharpened: where that agrees with the part of the mask
   that is nearer to it than to the others, by an IoU of SAME, it is replaced by this part.
3. Other masks are split as in `sspsam.objects.splitting`; a number in the phrase ("both cats", "the three
   dogs") is the least number of objects that groups of seeds are joined to.
4. Objects that the phrase fits much less are left out: those whose mean logit of the phrase is below WEAK of
   the best one's; if the phrase has a number, those beyond it instead, the weakest first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sspsam.images import frames
from sspsam.images.frames import BoolMask
from sspsam.objects.splitting import Decode, Grid, split_mask
from sspsam.reading.several import may_have_several, number_of_targets, things_of
from sspsam.results import Decoded, ImageEmbedding, Instance, Question, Referent

Finish = Callable[[Decoded], Referent]
"""As `sspsam.Predictor.finish`."""

WEAK = 0.4
"""Least mean logit of an object, as a fraction of the best one's."""
SAME = 0.6
"""IoU from which a thing's own answer and its part of the mask are the same."""
DIFFERENT = 0.5
"""IoU from which the answers about two things are one thing."""


def objects_of(
    embedding: ImageEmbedding, referent: Referent, decode: Decode, finish: Finish
) -> list[Instance]:
    """The objects of a phrase's answer, by the rule above.

    Args:
        embedding: The image's.
        referent: The answer.
        decode: Answers questions with the model of the answer.
        finish: Brings what is decoded to the original frame.

    Returns:
        Disjoint objects, from the left; none for an empty mask.
    """
    phrase = referent.reading.asked or referent.phrase
    if not referent.mask.any():
        return []
    if not may_have_several(phrase):
        return [Instance(referent.mask, referent.score)]
    things = things_of(phrase)
    whole, *parts = decode([Question(embedding, text) for text in (phrase, *things)])
    if things:
        answers = [finish(part) for part in parts]
        if all(not answer.no_target for answer in answers) and _differ(answers):
            return _objects_of_things(embedding, referent, parts, answers, decode)
    number = number_of_targets(phrase)
    found = split_mask(embedding, referent.mask, referent.score, decode, number)
    return _strong(found, _pixels(whole, referent.mask), number)


def _strong(found: Sequence[Instance], pixels: Grid, number: int | None) -> list[Instance]:
    """The objects that the phrase fits, in the same order."""
    fits = [float(pixels[instance.mask].mean()) for instance in found]
    if number is None:
        best_fit = max(fits)
        least = min(WEAK * best_fit, best_fit)  # negative logits: WEAK of the best one would be above it
        return [instance for instance, fit in zip(found, fits, strict=True) if fit >= least]
    best = sorted(range(len(found)), key=lambda place: -fits[place])[:number]
    return [found[place] for place in sorted(best)]


def _objects_of_things(
    embedding: ImageEmbedding,
    referent: Referent,
    parts: Sequence[Decoded],
    answers: Sequence[Referent],
    decode: Decode,
) -> list[Instance]:
    """The objects of each thing, disjoint."""
    logits = np.stack([_pixels(part, referent.mask) for part in parts])
    nearest = logits.argmax(axis=0)
    taken = np.zeros_like(referent.mask)
    found: list[Instance] = []
    for number, answer in enumerate(answers):
        own = referent.mask & (nearest == number)
        mask = own if _iou(own, answer.mask) >= SAME else answer.mask & (nearest == number)
        mask = mask & ~taken
        if not mask.any():
            continue
        taken |= mask
        if may_have_several(answer.phrase):
            found += split_mask(embedding, mask, answer.score, decode)
        else:
            found.append(Instance(mask, answer.score))
    return sorted(found, key=lambda instance: float(np.flatnonzero(instance.mask.any(axis=0)).mean()))


def _differ(answers: Sequence[Referent]) -> bool:
    return all(
        _iou(one.mask, other.mask) < DIFFERENT
        for place, one in enumerate(answers)
        for other in answers[:place]
    )


def _pixels(decoded: Decoded, like: BoolMask) -> Grid:
    """(H, W) logits of the phrase in the original frame."""
    return frames.sam_logits_to_pixels(decoded.mask_logits.numpy(), (like.shape[0], like.shape[1]))


def _iou(one: BoolMask, other: BoolMask) -> float:
    return int(np.count_nonzero(one & other)) / max(1, int(np.count_nonzero(one | other)))
