"""The round of the demo's steps 5 to 7, as printed: eight corrections, a fine-tune, the same phrase again.

`sspsam demo` with a real Label Studio. A simulated annotator does what the steps say: asks for the word that
the model does not know, clicks the object, names its mask and submits; then goes on asking while the model is
fine-tuned. The clicks' masks are the labels, not the true ones, as for a person who does not mend them.

    python benchmarks/demo_round.py
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common.results import judged_versions
from common.sections import table, write_section

from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.predictions import text_result
from sspsam import VersionStore
from sspsam.images.masks import BoolMask
from sspsam.version_store.store import VersionCard
from tests.e2e.running_demo import Demo
from tests.e2e.truth import CONFIG, inside, overlap, task_of
from tests.integration.conftest import free_port
from worker.local.demo_lesson import NOUN, PHRASE, TAUGHT, lesson_pictures, lesson_scene
from worker.local.demo_pictures import Picture

TRAINED_WITHIN_S = 1800.0
SWAPPED_WITHIN_S = 60.0
PAUSE_S = 2.0
"""Between two phrases of the annotator during the fine-tune."""
GOOD_IOU = 0.5


class Annotator:
    """Works in the demo's project through Label Studio."""

    def __init__(self, demo: Demo) -> None:
        self._demo = demo
        self._client = demo.client
        self._backend = int(self._client.ml_backends(demo.project)[0]["id"])

    def ask(self, picture: Picture, phrase: str) -> list[BoolMask]:
        """Types a phrase; returns its masks."""
        assert CONFIG.prompt is not None
        results = self._answer(picture, text_result(CONFIG.prompt, "p", [phrase]))
        return [region.mask for region in read_annotation({"result": results}, CONFIG).regions]

    def teach(self, number: int, picture: Picture) -> float:
        """Clicks the object, names its mask and submits; returns the IoU of the label with the object."""
        assert CONFIG.click is not None
        assert CONFIG.phrase is not None
        true = target_of(picture)
        (x, y), (height, width) = inside(true), true.shape
        click = {
            "id": f"click{number}", "from_name": CONFIG.click.name, "to_name": CONFIG.click.to_name,
            "type": "keypointlabels", "is_positive": True, "original_width": width,
            "original_height": height, "image_rotation": 0,
            "value": {"x": 100 * x, "y": 100 * y, "width": 0.2, "keypointlabels": ["refine"]},
        }  # fmt: skip
        drawn = [result for result in self._answer(picture, click) if result["type"] == "brushlabels"]
        named = [text_result(CONFIG.phrase, result["id"], [PHRASE]) for result in drawn]
        self._client.create_annotation(task_of(self._demo, picture), [*drawn, *named])
        (region,) = read_annotation({"result": drawn}, CONFIG).regions
        return overlap(region.mask, true)

    def _answer(self, picture: Picture, result: dict[str, Any]) -> list[dict[str, Any]]:
        context = {"result": [result]}
        answer = self._client.interactive_predict(self._backend, task_of(self._demo, picture), context)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


def target_of(picture: Picture) -> BoolMask:
    """The object that the lesson is about."""
    assert picture.seed is not None
    return lesson_scene(picture.seed).mask_of(picture.phrases[0].targets)


def ious(annotator: Annotator, pictures: Sequence[Picture]) -> list[float]:
    """IoU of the lesson's phrase on each picture."""
    answers = [annotator.ask(picture, PHRASE) for picture in pictures]
    return [
        overlap(np.any(masks, axis=0), target_of(picture)) if masks else 0.0
        for picture, masks in zip(pictures, answers, strict=True)
    ]


def judged(demo: Demo, annotator: Annotator, pictures: Sequence[Picture]) -> tuple[VersionCard, list[float]]:
    """The version that the fine-tune makes, and the seconds of the phrases asked meanwhile."""
    store = VersionStore(demo.folder / "models", "ssp-sam-demo")
    until_s, took_s = time.monotonic() + TRAINED_WITHIN_S, list[float]()
    for picture in itertools.cycle(pictures):
        made = judged_versions(store)
        if made:
            return made[-1], took_s
        if time.monotonic() > until_s:
            raise SystemExit(f"no version was judged within {TRAINED_WITHIN_S:.0f} s")
        since_s = time.monotonic()
        annotator.ask(picture, picture.phrases[0].text)
        took_s.append(time.monotonic() - since_s)
        time.sleep(PAUSE_S)
    raise AssertionError("there are pictures")


def wait_for_swap(demo: Demo, version_id: str) -> None:
    """Waits until Label Studio knows the version."""
    until_s = time.monotonic() + SWAPPED_WITHIN_S
    while demo.client.ml_backends(demo.project)[0]["model_version"] != version_id:
        if time.monotonic() > until_s:
            raise SystemExit(f"{version_id} does not serve after {SWAPPED_WITHIN_S:.0f} s")
        time.sleep(1)


def main() -> None:
    """Measures and writes the section."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="sspsam-") as folder:
        demo = Demo(Path(folder), free_port(), free_port(), settings={})
        try:
            demo.start()
            annotator = Annotator(demo)
            lesson = lesson_pictures(demo.folder / "lesson")
            asked, known = lesson[TAUGHT:], demo.pictures
            before = ious(annotator, asked)
            labels = [annotator.teach(number, picture) for number, picture in enumerate(lesson[:TAUGHT])]
            since_s = time.monotonic()
            card, took_s = judged(demo, annotator, known)
            judged_s = time.monotonic() - since_s
            if card.status == "promoted":
                wait_for_swap(demo, card.version_id)
            after = ious(annotator, asked)
        finally:
            demo.end_whatever_happens()
    write_section(
        "The demo's round",
        f"The demo's steps 5 to 7 in `sspsam demo` with Label Studio: a {NOUN} is clicked, named and sent "
        f"on {TAUGHT} images (mIoU of these labels {np.mean(labels):.2f}), and “{PHRASE}” asked on "
        f"{len(asked)} others. Start of the demo: {demo.starts[0]:.0f} s. From the last correction to the "
        f"verdict: **{judged_s:.0f} s**, with {len(took_s)} phrases meanwhile, {np.median(took_s):.2f} s at "
        f"the median, {max(took_s):.2f} s at most. {card.version_id} was {card.status}: {card.reason}",
        table(
            ["", "mIoU", f"answers above {GOOD_IOU}"],
            [
                [name, f"{np.mean(found):.2f}", f"{sum(iou > GOOD_IOU for iou in found)} of {len(found)}"]
                for name, found in {"before": before, "after": after}.items()
            ],
        ),
    )


if __name__ == "__main__":
    main()
