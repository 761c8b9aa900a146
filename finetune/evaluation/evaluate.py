"""Evaluates a predictor on a data set: metrics overall and by family, trivial baselines, times."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from finetune.data.sample import Dataset, DatasetError, Sample, samples_by_image
from finetune.evaluation.edge_bands import edge_band
from finetune.evaluation.protocols import Answer, BoolMask, MaskProtocol, PhraseModel, choose_protocol
from finetune.metrics import BoxAccuracy, Figures, SegmentationMetrics
from finetune.training.ranks import Ranks
from sspsam.images.masks import mask_to_box_xyxy

if TYPE_CHECKING:
    from sspsam import ImageEmbedding

NOTHING = "nothing"
"""Baseline that answers every phrase with an empty mask."""
ALL_OBJECTS = "all stickers"
"""Baseline that answers every phrase with all objects of the image, if the data set knows them."""

NO_BOX_XYXY = (0.0, 0.0, 0.0, 0.0)

Progress = Callable[[int, int], None]
"""Called with (samples evaluated, samples in the data set)."""


class SampleResult(NamedTuple):
    """Result of one sample."""

    sample_id: str
    image_id: str
    iou: float
    """0..1; without a target 1 if the answer is empty, else 0; for a label that is a box 1 if the box around
    the answer's mask has IoU 0.5 with it, else 0 (Acc@0.5)."""
    phrase: str = ""
    family: str = ""
    """Type of phrase; empty if the data set has none."""
    label: str = ""
    """Of the object; empty if the data set has none."""
    is_box: bool = False
    """Whether the label is a box."""
    found: bool = True
    """Whether the answer is a mask, not nothing."""


@dataclass(frozen=True)
class EvaluationResult:
    """Result of `evaluate`. Metrics are 0..1, or None where undefined."""

    overall: Figures
    """Acc@0.5 is that of the box head; for labels that are boxes, that of the box around the answer's mask,
    as in forms of boxes."""
    by_family: dict[str, Figures] = field(default_factory=dict)
    """Family -> metrics; empty if the data set has no families."""
    counts: dict[str, int] = field(default_factory=dict)
    """"samples", "images", and "no target": samples whose phrase has no target."""
    family_samples: dict[str, int] = field(default_factory=dict)
    """Family -> number of samples."""
    baselines: dict[str, Figures] = field(default_factory=dict)
    """"nothing", and "all stickers" if every sample knows the objects of its image."""
    family_baselines: dict[str, dict[str, Figures]] = field(default_factory=dict)
    """Family -> the same for its samples."""
    per_sample: list[SampleResult] = field(default_factory=list)
    """In the data set's order."""
    timings_ms: dict[str, float] = field(default_factory=dict)
    """Medians: "phrase, image embedded", "embed image", and "phrase, image not embedded", their sum."""
    refused: dict[str, str] = field(default_factory=dict)
    """Sample ID -> why its phrase is unreadable; such a sample counts as an empty answer."""
    protocol: str = "original"
    """Key of finetune.evaluation.protocols.PROTOCOLS: the frame in which masks are compared."""
    edges: bool = True
    """False if the edges of the labels were left out of the comparison."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "per_sample": [list(result) for result in self.per_sample]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvaluationResult:
        """The inverse of `to_dict`."""
        return cls(**{**values, "per_sample": [SampleResult(*row) for row in values["per_sample"]]})


def evaluate(
    predictor: PhraseModel,
    dataset: Dataset,
    progress: Progress | None = None,
    *,
    protocol: str = "original",
    edges: bool = True,
    processes: Ranks | None = None,
) -> EvaluationResult:
    """Evaluates every sample, one phrase at a time.

    Each image is embedded once for consecutive samples.

    Args:
        predictor: The model.
        dataset: Samples to evaluate.
        progress: Called after each image.
        protocol: `original`, at the images' own size, or `paper`, as in the paper's code.
        edges: False leaves a band around the edges of the labels out of the comparison: see
            `finetune.evaluation.edge_bands`.
        processes: Share the work; each gets the result of all.

    Raises:
        DatasetError: the data set is empty, or a sample cannot be read.
        ValueError: the protocol is unknown.
    """
    if len(dataset) == 0:
        raise DatasetError("the data set has no samples")
    processes = processes or Ranks()
    rules = choose_protocol(protocol, predictor)
    tally = _Tally(rules, edges)
    share = processes.share(len(dataset))
    for samples in samples_by_image(dataset, share):
        started = time.perf_counter()
        embedding = predictor.embed(samples[0].image)
        _wait_for_device(embedding)
        tally.counted.embed_s.append(time.perf_counter() - started)
        for sample in samples:
            tally.add(sample, _answer(predictor, embedding, sample, tally))
        if progress is not None:
            progress(len(tally.counted.per_sample), len(share))
    merged, *others = processes.gather(tally.counted)
    for other in others:
        merged.merge(other)
    return merged.result(protocol, edges)


def _answer(
    predictor: PhraseModel, embedding: ImageEmbedding, sample: Sample, tally: _Tally
) -> Answer | None:
    """The model's answer, or None if it refuses the phrase."""
    from sspsam import PhraseError

    started = time.perf_counter()
    try:
        answer = tally.rules.answer(predictor, embedding, sample.phrase)
    except PhraseError as error:
        tally.counted.refused[sample.sample_id] = str(error)
        return None
    tally.counted.phrase_s.append(time.perf_counter() - started)
    return answer


def _wait_for_device(embedding: ImageEmbedding) -> None:
    """Synchronises a GPU, so that its work is timed where it was launched."""
    if embedding.image_embedding.is_cuda:
        torch.cuda.synchronize(embedding.image_embedding.device)


@dataclass(frozen=True)
class _Label:
    """What an answer is compared with."""

    mask: BoolMask
    ignored: BoolMask | None
    """Pixels that are not compared."""
    is_box: bool

    def score(self, answer: BoolMask, metrics: SegmentationMetrics) -> float:
        """Adds an answer's mask to metrics; returns its score, 0..1."""
        if self.is_box:
            return metrics.update_box(mask_to_box_xyxy(answer), mask_to_box_xyxy(self.mask))
        return metrics.update(answer, self.mask, self.ignored)


class _Tally:
    """Accumulated results, by the rules of a protocol."""

    def __init__(self, rules: MaskProtocol, edges: bool) -> None:
        self.rules = rules
        self.edges = edges
        self.counted = Counted(self._metrics(), self._baselines())

    def add(self, sample: Sample, answer: Answer | None) -> None:
        counted, truth = self.counted, self.rules.truth(sample.mask)
        ignored = None if self.edges or sample.is_box else edge_band(truth)
        label = _Label(truth, ignored, sample.is_box)
        mask = np.zeros_like(truth) if answer is None else answer.mask
        score = label.score(mask, counted.overall)
        named = (sample.phrase, sample.family, sample.label, sample.is_box, bool(mask.any()))
        counted.per_sample.append(SampleResult(sample.sample_id, sample.image_id, score, *named))
        if sample.family:
            label.score(mask, counted.by_family.setdefault(sample.family, self._metrics()))
            by_name = counted.family_baselines.setdefault(sample.family, self._baselines())
            self._add_baselines(by_name, sample, label)
        if sample.is_box:
            counted.boxes.update(mask_to_box_xyxy(mask), mask_to_box_xyxy(truth))
        elif sample.has_target:
            box_xyxy = NO_BOX_XYXY if answer is None else answer.box_xyxy
            counted.boxes.update(box_xyxy, sample.true_box_xyxy)
        self._add_baselines(counted.baselines, sample, label)

    def _add_baselines(
        self, baselines: dict[str, SegmentationMetrics], sample: Sample, label: _Label
    ) -> None:
        label.score(np.zeros_like(label.mask), baselines[NOTHING])
        if sample.all_objects is not None:
            label.score(self.rules.truth(sample.all_objects), baselines[ALL_OBJECTS])

    def _baselines(self) -> dict[str, SegmentationMetrics]:
        return {name: self._metrics() for name in (ALL_OBJECTS, NOTHING)}

    def _metrics(self) -> SegmentationMetrics:
        return SegmentationMetrics(no_target_min_pixels=self.rules.no_target_min_pixels)


@dataclass
class Counted:
    """Results of one process, ready to be merged with others."""

    overall: SegmentationMetrics
    baselines: dict[str, SegmentationMetrics]
    boxes: BoxAccuracy = field(default_factory=BoxAccuracy)
    by_family: dict[str, SegmentationMetrics] = field(default_factory=dict)
    family_baselines: dict[str, dict[str, SegmentationMetrics]] = field(default_factory=dict)
    per_sample: list[SampleResult] = field(default_factory=list)
    embed_s: list[float] = field(default_factory=list)
    phrase_s: list[float] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def merge(self, other: Counted) -> Counted:
        """Merges the results of subsequent samples, and returns itself."""
        self.overall.merge(other.overall)
        self.boxes.merge(other.boxes)
        _merge_all(self.baselines, other.baselines)
        _merge_all(self.by_family, other.by_family)
        for family, baselines in other.family_baselines.items():
            _merge_all(self.family_baselines.setdefault(family, {}), baselines)
        self.per_sample += other.per_sample
        self.embed_s += other.embed_s
        self.phrase_s += other.phrase_s
        self.refused |= other.refused
        return self

    def result(self, protocol: str, edges: bool = True) -> EvaluationResult:
        """The metrics so far."""
        return EvaluationResult(
            protocol=protocol,
            edges=edges,
            overall={**self.overall.compute(), **self.boxes.compute()},
            by_family={family: metrics.compute() for family, metrics in self.by_family.items()},
            counts={
                "samples": self.overall.samples,
                "images": len({result.image_id for result in self.per_sample}),
                "no target": self.overall.samples - self.overall.samples_with_target,
            },
            family_samples={family: metrics.samples for family, metrics in self.by_family.items()},
            baselines=_complete(self.baselines, self.overall.samples),
            family_baselines={
                family: _complete(baselines, self.by_family[family].samples)
                for family, baselines in self.family_baselines.items()
            },
            per_sample=self.per_sample,
            timings_ms=self._timings_ms(),
            refused=self.refused,
        )

    def _timings_ms(self) -> dict[str, float]:
        if not self.embed_s:
            return {}
        embed = 1000 * float(np.median(self.embed_s))
        if not self.phrase_s:
            return {"embed image": embed}
        phrase = 1000 * float(np.median(self.phrase_s))
        return {
            "phrase, image embedded": phrase,
            "embed image": embed,
            "phrase, image not embedded": embed + phrase,
        }


def _merge_all(into: dict[str, SegmentationMetrics], others: Mapping[str, SegmentationMetrics]) -> None:
    for name, metrics in others.items():
        if name in into:
            into[name].merge(metrics)
        else:
            into[name] = metrics


def _complete(baselines: Mapping[str, SegmentationMetrics], samples: int) -> dict[str, Figures]:
    """Metrics of the baselines that apply to every sample."""
    return {name: metrics.compute() for name, metrics in baselines.items() if metrics.samples == samples}
