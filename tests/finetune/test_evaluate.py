"""Evaluation of the real model at its smallest preset, and of answers that are known beforehand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from finetune.data.dataset import Sample
from finetune.evaluate import ALL_OBJECTS, NOTHING, EvaluationResult, evaluate
from finetune.metrics import SegmentationMetrics
from sspsam import ImageEmbedding, Predictor, Referent
from sspsam.masks import mask_to_box_xyxy

Mask = npt.NDArray[np.bool_]


def rectangle(top: int, left: int, height: int, width: int) -> Mask:
    mask = np.zeros((20, 30), dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


CAT, DOG, EMPTY = rectangle(2, 2, 10, 8), rectangle(4, 15, 12, 10), rectangle(0, 0, 0, 0)


def sample(
    image: int, phrase: str, mask: Mask, family: str = "noun", all_objects: Mask | None = None
) -> Sample:
    pixels = np.random.default_rng(image).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    return Sample(f"{image}/{phrase}", str(image), pixels, phrase, mask, family, all_objects)


SAMPLES = [
    sample(1, "cat", CAT, all_objects=CAT | DOG),
    sample(1, "dog", DOG, all_objects=CAT | DOG),
    sample(1, "boat", EMPTY, "none", all_objects=CAT | DOG),
    sample(2, "all animals", CAT | DOG, "several", all_objects=CAT | DOG),
]


@dataclass
class AnswerSheet:
    """Answers phrases from a function, and counts how often a picture is embedded."""

    answer: Callable[[str], Mask]
    embedded: Counter[int] = field(default_factory=Counter)
    tiny: Predictor = field(default_factory=lambda: Predictor.from_preset("ssp-sam-test", "cpu"))

    def embed(self, image: npt.NDArray[np.uint8]) -> ImageEmbedding:
        self.embedded[int(image.sum())] += 1
        return self.tiny.embed(image)

    def predict(self, embedding: ImageEmbedding, phrases: list[str]) -> list[Referent]:
        masks = [self.answer(phrase) for phrase in phrases]
        return [
            Referent(phrase, mask, 1.0, mask_to_box_xyxy(mask), not mask.any())
            for phrase, mask in zip(phrases, masks, strict=True)
        ]


TRUTH = {one.phrase: one.mask for one in SAMPLES}


def test_right_answers_score_one_and_pictures_are_embedded_once() -> None:
    model = AnswerSheet(TRUTH.__getitem__)
    result = evaluate(model, SAMPLES)
    assert result.overall["mIoU"] == result.overall["oIoU"] == result.overall["Acc@0.5"] == 1.0
    assert result.overall["N-acc"] == result.overall["T-acc"] == 1.0
    assert list(model.embedded.values()) == [1, 1]
    assert result.counts == {"samples": 4, "images": 2, "no target": 1}


def test_figures_are_split_by_family() -> None:
    result = evaluate(AnswerSheet(lambda phrase: CAT), SAMPLES)
    assert result.family_samples == {"noun": 2, "none": 1, "several": 1}
    assert result.by_family["noun"]["mIoU"] == 0.5
    assert result.by_family["noun"]["N-acc"] is None
    assert result.by_family["none"]["N-acc"] == 0.0
    assert result.by_family["several"]["mIoU"] == pytest.approx(CAT.sum() / (CAT | DOG).sum())


def test_baselines_are_what_one_would_get_without_a_model() -> None:
    result = evaluate(AnswerSheet(TRUTH.__getitem__), SAMPLES)
    everything = SegmentationMetrics()
    for one in SAMPLES:
        everything.update(CAT | DOG, one.mask)
    assert result.baselines[ALL_OBJECTS] == everything.compute()
    assert result.baselines[NOTHING]["mIoU"] == 0.25
    assert result.baselines[NOTHING]["T-acc"] == 0.0


def test_a_baseline_that_does_not_know_every_picture_is_left_out() -> None:
    result = evaluate(AnswerSheet(TRUTH.__getitem__), [*SAMPLES, sample(3, "cat", CAT)])
    assert set(result.baselines) == {NOTHING}


def test_every_sample_is_listed_in_order_with_its_iou() -> None:
    result = evaluate(AnswerSheet(lambda phrase: CAT), SAMPLES)
    assert [(one.sample_id, one.image_id) for one in result.per_sample] == [
        (one.sample_id, one.image_id) for one in SAMPLES
    ]
    assert [one.iou for one in result.per_sample[:3]] == [1.0, 0.0, 0.0]


def test_the_real_model_is_measured_at_the_pictures_own_size() -> None:
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    seen: list[tuple[int, int]] = []
    result = evaluate(predictor, SAMPLES, lambda done, total: seen.append((done, total)))
    assert seen == [(3, 4), (4, 4)]
    embedding = predictor.embed(SAMPLES[0].image)
    by_hand = SegmentationMetrics()
    for one in SAMPLES[:3]:
        by_hand.update(predictor.predict(embedding, [one.phrase])[0].mask, one.mask)
    assert sum(one.iou for one in result.per_sample[:3]) == pytest.approx(by_hand.iou_sum)
    times = result.timings_ms
    assert times["phrase, image not embedded"] == times["phrase, image embedded"] + times["embed image"]
    assert min(times.values()) > 0


def test_a_phrase_that_cannot_be_read_counts_as_answered_with_nothing() -> None:
    endless = sample(1, "very " * 90 + "long dog", DOG)
    result = evaluate(Predictor.from_preset("ssp-sam-test", "cpu"), [endless])
    assert "too long" in result.refused[endless.sample_id]
    assert result.overall["mIoU"] == result.overall["T-acc"] == result.overall["Acc@0.5"] == 0.0
    assert set(result.timings_ms) == {"embed image"}


def test_a_result_survives_being_written() -> None:
    result = evaluate(AnswerSheet(lambda phrase: DOG), SAMPLES)
    assert EvaluationResult.from_dict(result.to_dict()) == result


def test_nothing_to_measure_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        evaluate(AnswerSheet(TRUTH.__getitem__), [])
