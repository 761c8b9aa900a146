"""Phrases as people type them, on scenes of stickers, beside names in the wording of the templates.

The phrases are those of tests/data/natural_phrases.tsv; none of their scenes is used in training. A false
nothing is an empty answer to a phrase with a target, a true nothing one to a phrase without.

    python benchmarks/natural_phrases.py [--weights FILE] [--as-typed] [--unsure 0.3] [--misses]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from common.natural import NaturalPhrases, draw_scene, read_phrases
from common.sections import table

from finetune.data.sample import Sample, samples_by_image
from finetune.data.stickers.phrases import make_phrases
from sspsam import Predictor, Referent
from sspsam.reading.reader import PhraseReader, Reading
from sspsam.results import Question

PRESET = "ssp-sam-demo"
TEMPLATES = "names, templates"
"""Names of the same scenes, in the generator's wordings."""
NAMES = 2
"""Such names in each scene."""


class AsTyped(PhraseReader):
    """Asks phrases as they are typed."""

    def read(self, phrase: str, learned: frozenset[int] = frozenset()) -> Reading:
        """The phrase itself."""
        return Reading(phrase)


def template_names(scenes: list[int]) -> list[Sample]:
    """Names of single things in the scenes, as the generator words them."""
    samples = []
    for number in scenes:
        scene = draw_scene(number)
        for said in make_phrases(scene, np.random.default_rng(number), ["noun"], NAMES):
            mask = scene.mask_of(said.targets)
            samples.append(
                Sample(f"{number}/{said.phrase}", str(number), scene.image, said.phrase, mask, TEMPLATES)
            )
    return samples


def overlap(sample: Sample, answer: Referent) -> float:
    """IoU; 1 for an empty answer without a target."""
    union = (sample.mask | answer.mask).sum()
    return float((sample.mask & answer.mask).sum() / union) if union else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", type=Path)
    parser.add_argument(
        "--as-typed", action="store_true", help="without reading: no openings removed or words mended"
    )
    parser.add_argument("--unsure", type=float, help="show masks from this presence on")
    parser.add_argument("--misses", action="store_true", help="print the phrases with an IoU below 0.5")
    options = parser.parse_args()
    predictor = Predictor.from_preset(PRESET, "cpu", options.weights)
    if options.as_typed:
        predictor._decoder.reader = AsTyped()
    natural = NaturalPhrases()
    scenes = sorted({row.scene for row in read_phrases()})
    ious: dict[str, list[float]] = defaultdict(list)
    empty: dict[bool, list[bool]] = defaultdict(list)
    for samples in [
        *samples_by_image(natural, range(len(natural))),
        *([one] for one in template_names(scenes)),
    ]:
        embedding = predictor.embed(samples[0].image)
        for sample in samples:
            [decoded] = predictor.decode([Question(embedding, sample.phrase)])
            answer = predictor.finish(decoded, min_presence=options.unsure)
            iou = overlap(sample, answer)
            ious[sample.family].append(iou)
            if sample.family != TEMPLATES:
                empty[bool(sample.mask.any())].append(answer.no_target)
            if options.misses and iou < 0.5 and sample.family != TEMPLATES:
                asked = answer.reading.asked
                print(f"{sample.family:<9}{iou:6.2f}{decoded.presence or 0:7.2f}  {sample.phrase} [{asked}]")
    rows = [[group, len(values), f"{100 * np.mean(values):.1f}"] for group, values in sorted(ious.items())]
    with_target = [
        iou for group, values in ious.items() if group not in (TEMPLATES, "none", "unknown") for iou in values
    ]
    print(
        table(
            ["group", "phrases", "mIoU"],
            [*rows, ["all with a target", len(with_target), f"{100 * np.mean(with_target):.1f}"]],
        )
    )
    share = np.mean(ious["name"]) / np.mean(ious[TEMPLATES])
    print(f"names: {share:.2f} of the mIoU on templates")
    print(f"false nothings: {100 * np.mean(empty[True]):.1f} % of {len(empty[True])}")
    print(f"true nothings: {100 * np.mean(empty[False]):.1f} % of {len(empty[False])}")


if __name__ == "__main__":
    main()
