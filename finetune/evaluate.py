"""Measures a predictor on a data set: figures over all samples and by family, trivial baselines, times."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from finetune.data.dataset import Dataset, Sample, samples_by_image
from finetune.metrics import BoxAccuracy, Figures, SegmentationMetrics

if TYPE_CHECKING:
    from sspsam import ImageEmbedding, Referent

NOTHING = "nothing"
"""Baseline that answers every phrase with an empty mask."""
ALL_OBJECTS = "all stickers"
"""Baseline that answers every phrase with every object of the picture, where the data set knows them."""

NO_BOX_XYXY = (0.0, 0.0, 0.0, 0.0)

Progress = Callable[[int, int], None]
"""Called with (samples measured, samples in the data set)."""


class PhraseModel(Protocol):
    """What is measured: `sspsam.Predictor`, or anything that answers as it does."""

    def embed(self, image: npt.NDArray[np.uint8], /) -> ImageEmbedding: ...

    def predict(self, embedding: ImageEmbedding, phrases: list[str], /) -> Sequence[Referent]: ...


class SampleResult(NamedTuple):
    """How one sample came out."""

    sample_id: str
    image_id: str
    iou: float
    """0..1; without a target 1 if the answer is empty, else 0."""


@dataclass(frozen=True)
class EvaluationResult:
    """What `evaluate` found. Figures are 0..1, or None where undefined."""

    overall: Figures
    by_family: dict[str, Figures] = field(default_factory=dict)
    """Family -> figures; empty where the data set has no families."""
    counts: dict[str, int] = field(default_factory=dict)
    """"samples", "images", and "no target": samples whose phrase fits nothing."""
    family_samples: dict[str, int] = field(default_factory=dict)
    """Family -> samples."""
    baselines: dict[str, Figures] = field(default_factory=dict)
    """"nothing", and "all stickers" where every sample knows the objects of its picture."""
    per_sample: list[SampleResult] = field(default_factory=list)
    """In the data set's order."""
    timings_ms: dict[str, float] = field(default_factory=dict)
    """Medians: "phrase, image embedded", "embed image", and "phrase, image not embedded", their sum."""
    refused: dict[str, str] = field(default_factory=dict)
    """Sample id -> why its phrase cannot be read; such a sample counts as answered with nothing."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "per_sample": [list(result) for result in self.per_sample]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvaluationResult:
        """The inverse of `to_dict`."""
        return cls(**{**values, "per_sample": [SampleResult(*row) for row in values["per_sample"]]})


def evaluate(predictor: PhraseModel, dataset: Dataset, progress: Progress | None = None) -> EvaluationResult:
    """Asks about every sample, one phrase at a time, and compares masks at the pictures' own size.

    Each picture is embedded once for the samples that follow each other.

    Args:
        predictor: The model.
        dataset: What to measure on.
        progress: Called after each picture.

    Raises:
        DatasetError: a sample cannot be read.
        ValueError: the data set is empty.
    """
    if len(dataset) == 0:
        raise ValueError("the data set has no samples to measure on")
    tally = _Tally()
    for samples in samples_by_image(dataset):
        started = time.perf_counter()
        embedding = predictor.embed(samples[0].image)
        tally.embed_s.append(time.perf_counter() - started)
        for sample in samples:
            tally.add(sample, _answer(predictor, embedding, sample, tally))
        if progress is not None:
            progress(len(tally.per_sample), len(dataset))
    return tally.result()


def _answer(
    predictor: PhraseModel, embedding: ImageEmbedding, sample: Sample, tally: _Tally
) -> Referent | None:
    """The model's answer, or None if it refuses the phrase."""
    from sspsam import PhraseError

    started = time.perf_counter()
    try:
        [referent] = predictor.predict(embedding, [sample.phrase])
    except PhraseError as error:
        tally.refused[sample.sample_id] = str(error)
        return None
    tally.phrase_s.append(time.perf_counter() - started)
    return referent


@dataclass
class _Tally:
    """What has been seen so far."""

    overall: SegmentationMetrics = field(default_factory=SegmentationMetrics)
    boxes: BoxAccuracy = field(default_factory=BoxAccuracy)
    by_family: dict[str, SegmentationMetrics] = field(default_factory=dict)
    baselines: dict[str, SegmentationMetrics] = field(
        default_factory=lambda: {ALL_OBJECTS: SegmentationMetrics(), NOTHING: SegmentationMetrics()}
    )
    per_sample: list[SampleResult] = field(default_factory=list)
    embed_s: list[float] = field(default_factory=list)
    phrase_s: list[float] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def add(self, sample: Sample, referent: Referent | None) -> None:
        nothing = np.zeros_like(sample.mask)
        mask = nothing if referent is None else referent.mask
        iou = self.overall.update(mask, sample.mask)
        self.per_sample.append(SampleResult(sample.sample_id, sample.image_id, iou))
        if sample.family:
            self.by_family.setdefault(sample.family, SegmentationMetrics()).update(mask, sample.mask)
        if sample.has_target:
            box_xyxy = NO_BOX_XYXY if referent is None else referent.box_xyxy
            self.boxes.update(box_xyxy, sample.true_box_xyxy)
        self.baselines[NOTHING].update(nothing, sample.mask)
        if sample.all_objects is not None:
            self.baselines[ALL_OBJECTS].update(sample.all_objects, sample.mask)

    def result(self) -> EvaluationResult:
        return EvaluationResult(
            overall={**self.overall.compute(), **self.boxes.compute()},
            by_family={family: metrics.compute() for family, metrics in self.by_family.items()},
            counts={
                "samples": self.overall.samples,
                "images": len(self.embed_s),
                "no target": self.overall.samples - self.overall.samples_with_target,
            },
            family_samples={family: metrics.samples for family, metrics in self.by_family.items()},
            baselines={
                name: metrics.compute()
                for name, metrics in self.baselines.items()
                if metrics.samples == self.overall.samples
            },
            per_sample=self.per_sample,
            timings_ms=self._timings_ms(),
            refused=self.refused,
        )

    def _timings_ms(self) -> dict[str, float]:
        embed = 1000 * float(np.median(self.embed_s))
        if not self.phrase_s:
            return {"embed image": embed}
        phrase = 1000 * float(np.median(self.phrase_s))
        return {
            "phrase, image embedded": phrase,
            "embed image": embed,
            "phrase, image not embedded": embed + phrase,
        }
