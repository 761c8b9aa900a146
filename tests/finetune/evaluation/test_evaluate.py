"""Evaluation of the real model with its smallest preset, and of known answers."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from finetune.data.dataset import open_dataset
from finetune.data.sample import DatasetError, Sample
from finetune.evaluation.evaluate import ALL_OBJECTS, NOTHING, Counted, EvaluationResult, evaluate
from finetune.evaluation.protocols import choose_protocol
from finetune.metrics import NO_TARGET_MIN_PIXELS, SegmentationMetrics
from finetune.training.ranks import Ranks
from sspsam import ImageEmbedding, Predictor, Referent
from sspsam.cli import main
from sspsam.images.frames import ClipFrame
from sspsam.images.masks import mask_to_box_xyxy
from sspsam.phrases import tokenize
from tests.finetune.launching import launch

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


RING = CAT.copy()
RING[4:9, 4:8] = False


@pytest.mark.parametrize("edges", [True, False])
@pytest.mark.parametrize(
    ("answer", "hit"),
    [(CAT, 1), (RING, 1), (rectangle(2, 2, 10, 6), 1), (rectangle(2, 2, 10, 3), 0), (DOG, 0), (EMPTY, 0)],
    ids=["equal", "equal box", "IoU above 0.5", "IoU below 0.5", "elsewhere", "nothing"],
)
def test_a_label_that_is_a_box_counts_by_the_box_around_the_answer(
    answer: Mask, hit: int, edges: bool
) -> None:
    box = replace(sample(1, "cat", CAT), is_box=True)

    result = evaluate(AnswerSheet(lambda phrase: answer), [box], edges=edges)

    (label,) = result.per_sample
    assert (label.iou, label.is_box) == (hit, True)
    assert (result.overall["Acc@0.5"], result.overall["gIoU"], result.overall["Pr@0.9"]) == (hit, hit, hit)
    assert result.overall["T-acc"] == float(answer.any())
    assert result.baselines[NOTHING]["gIoU"] == 0
    assert EvaluationResult.from_dict(result.to_dict()) == result


def test_boxes_of_several_objects_count_by_the_box_around_all() -> None:
    both = CAT | DOG
    box = replace(sample(1, "cat", both), is_box=True)
    around_both = rectangle(2, 2, 14, 23)

    result = evaluate(AnswerSheet(lambda phrase: around_both), [box])

    assert mask_to_box_xyxy(both) == mask_to_box_xyxy(around_both)
    assert result.overall["gIoU"] == 1


def test_boxes_and_masks_count_equally() -> None:
    labels = [replace(sample(1, "cat", CAT), is_box=True), sample(2, "cat", CAT)]

    result = evaluate(AnswerSheet(lambda phrase: RING), labels)

    as_box, as_mask = (each.iou for each in result.per_sample)
    assert as_box == 1
    assert as_mask == pytest.approx(RING.sum() / CAT.sum())
    assert result.overall["gIoU"] == pytest.approx((as_box + as_mask) / 2)
    assert result.overall["cIoU"] == pytest.approx(as_mask)


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
    with pytest.raises(DatasetError, match="no samples"):
        evaluate(AnswerSheet(TRUTH.__getitem__), [])


@pytest.mark.parametrize("command", [["evaluate"], ["gallery", "--out", "none.png"]])
def test_nothing_to_measure_on_is_one_line_of_the_command(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--dataset", "stickers/val?count=0", "--preset", "ssp-sam-test", "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main([*command, *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err.strip().startswith("sspsam: ")


def test_the_papers_protocol_compares_on_padded_squares() -> None:
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    result = evaluate(predictor, SAMPLES, protocol="paper")
    by_hand = SegmentationMetrics(no_target_min_pixels=NO_TARGET_MIN_PIXELS)
    for one in SAMPLES:
        embedding = predictor.embed(one.image)
        encoded = predictor.model.encode_phrase(tokenize([one.phrase]))
        with torch.inference_mode():
            prompts = predictor.model.make_prompts(embedding.patch_features, encoded)
            logits = predictor.model.decode(embedding.image_embedding, prompts).mask_logits
            for side in (1024, 512):
                logits = torch.nn.functional.interpolate(logits, (side, side), mode="bilinear")
        by_hand.update((logits.sigmoid() >= 0.5)[0, 0].numpy(), plain_square(one.mask))
    assert result.protocol == "paper"
    assert {name: result.overall[name] for name in by_hand.compute()} == pytest.approx(by_hand.compute())
    assert result.overall != evaluate(predictor, SAMPLES).overall


def plain_square(mask: Mask) -> Mask:
    """The truth, step by step: longest side 1024, all that is touched, padded, every other pixel."""
    scale = 1024 / max(mask.shape)
    height, width = (int(side * scale + 0.5) for side in mask.shape)
    grey = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    padded = np.pad(np.asarray(grey) > 0, ((0, 1024 - height), (0, 1024 - width)))
    return padded[::2, ::2]


@pytest.mark.parametrize("area", [0, 49, 50])
def test_the_fifty_pixel_rule_is_the_papers_alone(area: int) -> None:
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    metrics = SegmentationMetrics(
        no_target_min_pixels=choose_protocol("paper", predictor).no_target_min_pixels
    )
    answer = np.zeros((512, 512), dtype=bool)
    answer.flat[:area] = True
    metrics.update(answer, np.zeros_like(answer))
    assert metrics.compute()["N-acc"] == float(area < 50)
    assert choose_protocol("original", predictor).no_target_min_pixels == 1


def test_a_protocol_that_cannot_be_followed_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown protocol 'papre', expected one of: original, paper"):
        evaluate(AnswerSheet(TRUTH.__getitem__), SAMPLES, protocol="papre")
    with pytest.raises(ValueError, match=r"needs the logits of a sspsam\.Predictor"):
        evaluate(AnswerSheet(TRUTH.__getitem__), SAMPLES, protocol="paper")


@given(st.lists(st.integers(0, len(SAMPLES) - 1), min_size=1, max_size=9), st.integers(1, 4))
@settings(deadline=None, max_examples=25)
def test_parts_measured_apart_merge_to_the_whole(chosen: list[int], parts: int) -> None:
    """Whatever the cut: the processes' own tallies, merged in order, are the figures of one pass."""
    samples = [SAMPLES[i] for i in chosen]
    model = PlainSheet()
    whole = evaluate(model, samples)
    tallies: list[Counted] = []
    for rank in range(parts):
        evaluate(model, samples, processes=Overheard(tallies, rank, parts))
    merged, *others = tallies
    for other in others:
        merged.merge(other)
    result = merged.result("original")
    assert result.overall == pytest.approx(whole.overall)
    assert result.family_baselines.keys() == whole.family_baselines.keys()
    by_family = (
        (result.family_baselines[one], whole.family_baselines[one]) for one in whole.family_baselines
    )
    pairs = ((result.by_family, whole.by_family), (result.baselines, whole.baselines), *by_family)
    for merged_figures, figures in pairs:
        assert merged_figures.keys() == figures.keys()
        for name in figures:
            assert merged_figures[name] == pytest.approx(figures[name])
    assert (result.counts, result.per_sample) == (whole.counts, whole.per_sample)


class PlainSheet:
    """Answers half of the phrases rightly, without a network."""

    def embed(self, image: npt.NDArray[np.uint8]) -> ImageEmbedding:
        frame = ClipFrame((20, 30), (20, 30), 0, 0, 30)
        return ImageEmbedding((20, 30), torch.zeros(1), torch.zeros(1), frame)

    def predict(self, embedding: ImageEmbedding, phrases: list[str]) -> list[Referent]:
        masks = [TRUTH[phrase] if len(phrase) > 3 else CAT for phrase in phrases]
        return [Referent(p, m, 1.0, mask_to_box_xyxy(m), False) for p, m in zip(phrases, masks, strict=True)]


class Overheard(Ranks):
    """One of several processes; what it has to say is noted instead of sent."""

    def __init__(self, said: list[Counted], rank: int, count: int) -> None:
        super().__init__(rank, count)
        object.__setattr__(self, "said", said)

    def gather(self, value: Any) -> list[Any]:
        self.said.append(value)
        return [copy.deepcopy(value)]


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(tmp_path: Path) -> None:
    spec = "stickers/val?count=3&phrases=3&nouns=first"
    program = tmp_path / "measure.py"
    program.write_text(
        "import json\n"
        "from finetune.data.dataset import open_dataset\n"
        "from finetune.evaluation.evaluate import evaluate\n"
        "from finetune.training.ranks import join_ranks\n"
        "from sspsam import Predictor\n"
        "processes = join_ranks('cpu')\n"
        "predictor = Predictor.from_preset('ssp-sam-test', 'cpu')\n"
        f"result = evaluate(predictor, open_dataset('{spec}'), processes=processes)\n"
        "print(json.dumps([processes.rank, processes.count, result.to_dict()]))\n"
    )
    reports = [json.loads(out) for out in launch(2, program)]
    assert [report[:2] for report in reports] == [[0, 2], [1, 2]]
    alone = evaluate(Predictor.from_preset("ssp-sam-test", "cpu"), open_dataset(spec))
    for _, _, values in reports:
        together = EvaluationResult.from_dict(values)
        assert together.overall == pytest.approx(alone.overall)
        assert together.per_sample == alone.per_sample
        assert together.counts == alone.counts
