"""Forgetting by fine-tunes of the demo weights: the base validation set before and after.

One fine-tune per class that the weights were not trained on, performed like in the worker with the preset's
recipe: its replay, its base validation set of 40 scenes with 6 phrases, and its gate.

    python benchmarks/forgetting.py [--nouns koala,guitar,umbrella] [--corrections 20] [--keep FILE]

With `--keep FILE`, each result is appended to a file and never measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
from common.results import Results, fine_tuning
from common.sections import table, write_section
from PIL import Image

from backend.settings import Settings
from finetune.data.dataset import open_dataset
from finetune.data.records import RefRecord
from finetune.data.sample import Sample
from sspsam import VersionStore, mask_to_coco_rle
from worker.finetuning.measuring import verdict_of
from worker.finetuning.policy import assign_sides
from worker.finetuning.runs import prepare_run
from worker.finetuning.training import perform
from worker.lines import Line

PRESET = "ssp-sam-demo"
PROJECT = 1
SCENES = "stickers/test?nouns={noun},core&families=noun&phrases=6&count=2000&seed=77"
"""Seeds used neither for the weights nor for their evaluation."""


@dataclass(frozen=True)
class Forgotten:
    """Effect of one fine-tune: gIoU in 0..1, before and after."""

    noun: str
    corrections: int
    held_out_before: float
    held_out_after: float
    base_before: float
    base_after: float
    interval: tuple[float, float]
    """90 % interval of the change on the base validation set."""
    steps: int
    minutes: float

    def row(self) -> list[str]:
        return [
            self.noun,
            f"{self.held_out_before:.3f} -> {self.held_out_after:.3f}",
            f"{self.base_before:.3f} -> {self.base_after:.3f}",
            f"{self.base_after - self.base_before:+.3f}",
            "{:+.3f} to {:+.3f}".format(*self.interval),
            f"{self.steps:.0f}",
            f"{self.minutes:.1f}",
        ]


def main() -> None:
    """Fine-tunes for each noun and prints the losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nouns", default="koala,guitar,umbrella", help="novel nouns, separated by commas")
    parser.add_argument("--corrections", type=int, default=20)
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="file of results; those in it are not measured again"
    )
    options = parser.parse_args()
    results = Results(options.keep, fine_tuning(PRESET), ("noun", "corrections"))
    subjects = [(noun, options.corrections) for noun in options.nouns.split(",")]
    for subject in subjects:
        if subject not in results:
            results.add(asdict(measure(*subject)))
    found = [Forgotten(**results[subject]) for subject in subjects]
    head = ("class", "held-out gIoU", "base validation gIoU", "change", "90 % interval", "steps", "minutes")
    about = (
        f"One fine-tune of the demo weights for each class, on {options.corrections} corrected masks of a "
        "class that they were not trained on; measured by the gate. It tolerates a loss of "
        f"{Settings.model_fields['validation_tolerance'].default} on the base validation set "
        "(`VALIDATION_TOLERANCE`)."
    )
    rows = [one.row() for one in found] + ([medians(found)] if len(found) > 1 else [])
    write_section("Forgetting", about, table(head, rows))


def medians(found: Sequence[Forgotten]) -> list[str]:
    """The last row: the median of each column; a change is thus not the difference of two medians."""

    def median(of: Callable[[Forgotten], float]) -> float:
        return float(np.median([of(one) for one in found]))

    return [
        "median",
        f"{median(lambda one: one.held_out_before):.3f} -> {median(lambda one: one.held_out_after):.3f}",
        f"{median(lambda one: one.base_before):.3f} -> {median(lambda one: one.base_after):.3f}",
        f"{median(lambda one: one.base_after - one.base_before):+.3f}",
        "",
        f"{median(lambda one: one.steps):.0f}",
        f"{median(lambda one: one.minutes):.1f}",
    ]


def measure(noun: str, corrections: int) -> Forgotten:
    """One fine-tune."""
    with tempfile.TemporaryDirectory(prefix="sspsam-") as name:
        settings = Settings(model_dir=Path(name), preset=PRESET, device="cpu")
        store = VersionStore(settings.model_dir, PRESET)
        records = correct(noun, corrections, settings.images_dir)
        sides = assign_sides({}, {record.image_sha256 for record in records}, ())
        line = Line(store.line_of(PROJECT), (PROJECT,))
        run = prepare_run(settings.model_dir, store, line, records, sides)
        started_s = time.monotonic()
        card = perform(run, store, settings)
        minutes = (time.monotonic() - started_s) / 60
    held_out, known = card.metrics, card.metrics["base_validation"]
    print(f"{noun}: {verdict_of(held_out).reason}", flush=True)
    return Forgotten(
        noun,
        corrections,
        held_out["incumbent"]["gIoU"],
        held_out["candidate"]["gIoU"],
        known["incumbent"]["gIoU"],
        known["candidate"]["gIoU"],
        known["interval"],
        card.data["steps"],
        minutes,
    )


def correct(noun: str, count: int, images: Path) -> list[RefRecord]:
    """Hand-drawn masks of a class, one per image, and the image files."""
    images.mkdir(parents=True, exist_ok=True)
    return [as_record(number, sample, images) for number, sample in enumerate(islice(named(noun), count))]


def named(noun: str) -> Iterator[Sample]:
    """Samples of different images whose phrase is the noun."""
    data, seen = open_dataset(SCENES.format(noun=noun)), set()
    for index in range(len(data)):
        sample = data[index]
        if sample.has_target and noun in sample.phrase.lower() and sample.image_id not in seen:
            seen.add(sample.image_id)
            yield sample


def as_record(number: int, sample: Sample, images: Path) -> RefRecord:
    """A sample as stored after its annotation is collected."""
    data = BytesIO()
    Image.fromarray(sample.image).save(data, "PNG")
    digest = hashlib.sha256(data.getvalue()).hexdigest()
    (images / digest).write_bytes(data.getvalue())
    return RefRecord(
        image_sha256=digest,
        image_url=f"/data/upload/{PROJECT}/{number}.png",
        image_hw=sample.mask.shape,
        phrase=sample.phrase,
        mask_rle=mask_to_coco_rle(sample.mask),
        project=PROJECT,
        task=number,
        annotation=number,
        region=f"drawn-{number}",
        updated_at="2026-01-01T00:00:00Z",
    )


if __name__ == "__main__":
    main()
