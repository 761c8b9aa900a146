"""Active learning end to end: corrected masks of a class that the demo weights were not trained on.

For each of several novel nouns, simulated annotators in a real Label Studio type the noun and save the true
mask. Webhook, collection, fine-tune, gate and swap follow as in production. Versions before and after are
evaluated on fresh scenes with the noun and on the base validation set.

    python benchmarks/active_learning.py [--nouns koala,guitar,...] [--corrections 20,40]
    python benchmarks/active_learning.py --inner     # the fine-tunes alone, without Label Studio

With `--keep FILE`, each result is appended to a file and never measured again, so the curve can be measured
in parts, and an interrupted run can be resumed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from common.kept import KeepingPredictor
from common.novel import CORRECTED_SPLIT, FRESH_SPLIT, NovelDataset, NovelScene, novel_scenes
from common.results import Results, fine_tuning
from common.sections import table, write_section
from PIL import Image
from rich.console import Console

from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.labelstudio.predictions import ProposedRegion, region_results
from backend.labelstudio.setup import connect_project
from backend.settings import Settings
from finetune.data.records import RefRecord
from finetune.evaluation.evaluate import evaluate
from sspsam import VersionStore, mask_to_coco_rle
from sspsam.version_store.lines import ModelLines
from sspsam.version_store.store import VersionCard
from tests.annotator_client import AnnotatorClient
from tests.integration.conftest import LABEL_STUDIO, free_port
from worker.finetuning.policy import assign_sides
from worker.finetuning.runs import prepare_run
from worker.finetuning.training import judge_candidate, perform
from worker.lines import Line
from worker.local.local_label_studio import Account, label_studio_part
from worker.local.supervisor import Supervisor
from worker.local.up import LOOPBACK, start_redis, start_service
from worker.records import Collection

PRESET = "ssp-sam-demo"
NOUNS = "koala,guitar,umbrella,castle,pizza"
CONFIG = LabelingConfig.parse(RECOMMENDED_CONFIG)
COLLECT_S, FINETUNE_S, SWAP_S = 1200.0, 7200.0, 120.0
TARGETS = (
    "Targets for 20 corrections: mIoU at least doubled and at least 0.5, loss on the base validation set at "
    "most 0.02, at most 10 minutes on two otherwise idle cores."
)
TITLE = "Learning from corrections"
TITLE_INNER = "Learning from corrections: fine-tunes alone"

Teach = Callable[[Sequence[NovelScene]], VersionCard]
"""Produces a judged version from corrections."""
Subject = tuple[str, int]
"""A noun and its number of corrections."""


@dataclass(frozen=True)
class Lesson:
    """Effect of the corrections of one noun; mIoU and gIoU in 0..1."""

    noun: str
    corrections: int
    before: float
    after: float
    base_before: float
    base_after: float
    minutes: float
    promoted: bool

    def row(self) -> list[str]:
        return [
            self.noun,
            str(self.corrections),
            f"{self.before:.2f}",
            f"{self.after:.2f}",
            f"{self.base_before:.3f}",
            f"{self.base_after - self.base_before:+.3f}",
            f"{self.minutes:.1f}",
            "promoted" if self.promoted else "rejected",
        ]


class Pupil:
    """Evaluates versions on fresh scenes.

    Args:
        fresh: Scenes for each noun.
        results: Stores the results.
    """

    def __init__(self, fresh: int, results: Results) -> None:
        self._fresh = fresh
        self._results = results
        self._predictor = KeepingPredictor.from_preset(PRESET, "cpu")
        self._base = self._predictor.trainable_state()

    def learn(self, noun: str, corrections: int, store: VersionStore, teach: Teach) -> None:
        """Teaches a noun, evaluates the version, and stores the result."""
        fresh = NovelDataset(list(islice(novel_scenes(noun, FRESH_SPLIT), self._fresh)))
        before = self._score(fresh)
        since_s = time.monotonic()
        card = teach(list(islice(novel_scenes(noun, CORRECTED_SPLIT), corrections)))
        minutes = (time.monotonic() - since_s) / 60
        self._predictor.load_trainable(store.load(card.version_id))
        after = self._score(fresh)
        self._predictor.load_trainable(self._base)
        base = card.metrics["base_validation"]
        lesson = Lesson(
            noun,
            corrections,
            before,
            after,
            base["incumbent"]["gIoU"],
            base["candidate"]["gIoU"],
            minutes,
            card.status == "promoted",
        )
        print(*lesson.row(), card.reason, flush=True)
        self._results.add(asdict(lesson))

    def _score(self, fresh: NovelDataset) -> float:
        return float(evaluate(self._predictor, fresh).overall["mIoU"] or 0.0)


def teach_directly(settings: Settings, store: VersionStore) -> Teach:
    """Only the worker's code: records, fine-tune, gate."""

    def teach(scenes: Sequence[NovelScene]) -> VersionCard:
        records = [as_record(number, scene, settings) for number, scene in enumerate(scenes, start=1)]
        sides = assign_sides({}, {record.image_sha256 for record in records}, ())
        run = prepare_run(settings.model_dir, store, Line(store.line_of(1), (1,)), records, sides)
        return judge_candidate(store, perform(run, store, settings))

    return teach


def as_record(number: int, scene: NovelScene, settings: Settings) -> RefRecord:
    """The record that collection would make of a correction; stores the image."""
    data = png(scene)
    digest = hashlib.sha256(data).hexdigest()
    settings.images_dir.mkdir(parents=True, exist_ok=True)
    (settings.images_dir / digest).write_bytes(data)
    rle = mask_to_coco_rle(scene.mask)
    hw = (scene.mask.shape[0], scene.mask.shape[1])
    return RefRecord(
        digest, "", hw, scene.phrase, rle, 1, number, number, f"r{number}", "2026-01-01T00:00:00Z"
    )


def png(scene: NovelScene) -> bytes:
    data = BytesIO()
    Image.fromarray(scene.image).save(data, "PNG")
    return data.getvalue()


@dataclass(frozen=True)
class Service:
    """Label Studio and all parts of the service."""

    client: AnnotatorClient
    url: str
    secret: str
    model_dir: Path
    model_lines: ModelLines = "project"

    def teach(self, scenes: Sequence[NovelScene]) -> VersionCard:
        """Corrects the scenes in a project of their own, and trains on them."""
        project = self.connect("Lesson")
        self.correct(project, scenes)
        return self.train(project)

    def connect(self, title: str) -> int:
        """Creates a connected project."""
        project = int(self.client.create_project(title, RECOMMENDED_CONFIG)["id"])
        connect_project(self.client, project, self.url, webhook_secret=self.secret)
        return project

    def correct(self, project: int, scenes: Sequence[NovelScene]) -> None:
        """Adds scenes to a project, annotates them like a user, and waits for their records."""
        collection = Collection(self.model_dir, project)
        wanted, backend = len(collection.records()) + len(scenes), self.backend(project)
        for task, scene in zip(self.upload(project, scenes), scenes, strict=True):
            self._correct(backend, task, scene)
        wait_until(lambda: len(collection.records()) == wanted, COLLECT_S)

    def upload(self, project: int, scenes: Sequence[NovelScene]) -> list[int]:
        """Adds scenes to a project; returns their tasks."""
        known = {int(task["id"]) for task in self.client.tasks(project)}
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{number:03d}.png" for number in range(len(scenes))]
            for path, scene in zip(paths, scenes, strict=True):
                path.write_bytes(png(scene))
            self.client.upload_images(project, paths)
        return [number for task in self.client.tasks(project) if (number := int(task["id"])) not in known]

    def train(self, project: int) -> VersionCard:
        """Starts the training, and waits until a version is judged and the right one serves."""
        store = VersionStore(self.model_dir, PRESET, model_lines=self.model_lines)
        known = len(store.list())
        self.client.start_training(self.backend(project))
        wait_until(lambda: len(store.list()) > known and store.list()[-1].status != "candidate", FINETUNE_S)
        serving = store.current(store.line_of(project))
        wait_until(lambda: self.client.ml_backends(project)[0]["model_version"] == serving, SWAP_S)
        return store.list()[-1]

    def backend(self, project: int) -> int:
        return int(self.client.ml_backends(project)[0]["id"])

    def ask(self, backend: int, task: int, phrase: str) -> list[dict[str, Any]]:
        """The results that an annotator gets who types a phrase."""
        prompt = {"id": "p", "from_name": "prompt", "to_name": "image", "type": "textarea"}
        context = {"result": [{**prompt, "value": {"text": [phrase]}}]}
        answer = self.client.interactive_predict(backend, task, context)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def _correct(self, backend: int, task: int, scene: NovelScene) -> None:
        """Types the phrase and saves the true mask, replacing the proposed one or drawn by hand."""
        drawn = self.ask(backend, task, scene.phrase)
        region = next((one["id"] for one in drawn if one["from_name"] == "mask"), f"drawn{task}")
        results = region_results(ProposedRegion(region, scene.phrase, scene.mask, score=0.5), CONFIG)
        self.client.create_annotation(task, results)


@contextmanager
def service(folder: Path, model_lines: ModelLines = "project") -> Iterator[Service]:
    """Starts everything as `sspsam demo` does."""
    console, secret, port = Console(quiet=True), secrets.token_hex(8), free_port()
    account = Account("annotator@example.com", "password", secrets.token_hex(20))
    ls_port = free_port()
    told = {
        **os.environ,
        "LABEL_STUDIO_URL": f"http://{LOOPBACK}:{ls_port}",
        "LABEL_STUDIO_API_KEY": account.token,
        "WEBHOOK_SECRET": secret,
        "OPEN_ACCESS": "true",
        "MODEL_DIR": str(folder / "models"),
        "PUBLIC_URL": f"http://{LOOPBACK}:{port}",
        "PRESET": PRESET,
        "MODEL_LINES": model_lines,
        "FINETUNE_AFTER": "1000",  # "Start Training" begins it
        "PREFETCH_TASKS": "0",
        "DEVICE": "cpu",
        "LOG_LEVEL": "WARNING",
    }
    with Supervisor(folder / "logs") as supervisor:
        supervisor.start(label_studio_part(LABEL_STUDIO, ls_port, folder / "label-studio", account))
        supervisor.wait_until_ready("label-studio")
        start_service(supervisor, console, told, start_redis(supervisor, folder / "redis", console), port)
        client = AnnotatorClient(told["LABEL_STUDIO_URL"], account.token)
        yield Service(client, told["PUBLIC_URL"], secret, folder / "models", model_lines)


def wait_until(condition: Callable[[], bool], within_s: float) -> None:
    until_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until_s:
            raise SystemExit(f"it did not happen within {within_s:.0f} s")
        time.sleep(1)


def through_label_studio(pupil: Pupil, wanted: Sequence[Subject]) -> None:
    """All lessons through the complete service, one after the other, each in a project of its own."""
    with tempfile.TemporaryDirectory(prefix="sspsam-") as folder, service(Path(folder)) as started:
        store = VersionStore(started.model_dir, PRESET)
        for noun, corrections in wanted:
            pupil.learn(noun, corrections, store, started.teach)


def directly(pupil: Pupil, wanted: Sequence[Subject]) -> None:
    """The same without Label Studio, Redis and backend."""
    for noun, corrections in wanted:
        with tempfile.TemporaryDirectory(prefix="sspsam-") as folder:
            settings = Settings(model_dir=Path(folder), preset=PRESET, device="cpu")
            store = VersionStore(settings.model_dir, PRESET)
            pupil.learn(noun, corrections, store, teach_directly(settings, store))


def medians(lessons: Sequence[Lesson], counts: Sequence[int]) -> list[list[str]]:
    """One row per number of corrections."""
    rows = []
    for count in counts:
        some = [lesson for lesson in lessons if lesson.corrections == count]
        before, after, minutes, base = (
            float(np.median(values))
            for values in (
                [lesson.before for lesson in some],
                [lesson.after for lesson in some],
                [lesson.minutes for lesson in some],
                [lesson.base_after - lesson.base_before for lesson in some],
            )
        )
        promoted = f"{sum(lesson.promoted for lesson in some)} of {len(some)}"
        rows.append([str(count), f"{before:.2f}", f"{after:.2f}", f"{base:+.3f}", f"{minutes:.1f}", promoted])
    return rows


def main() -> None:
    """Measures and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nouns", default=NOUNS, help="novel nouns, separated by commas")
    parser.add_argument("--corrections", default="20")
    parser.add_argument("--fresh", type=int, default=40, help="scenes for the evaluation of each noun")
    parser.add_argument("--inner", action="store_true", help="the fine-tunes alone, without Label Studio")
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="file of results; those in it are not measured again"
    )
    options = parser.parse_args()
    counts = [int(count) for count in options.corrections.split(",")]
    subjects = [(noun, count) for noun in options.nouns.split(",") for count in counts]
    conditions = {**fine_tuning(PRESET), "fresh": options.fresh, "inner": options.inner}
    results = Results(options.keep, conditions, ("noun", "corrections"))
    missing = [subject for subject in subjects if subject not in results]
    if missing:
        run = directly if options.inner else through_label_studio
        run(Pupil(options.fresh, results), missing)
    lessons = [Lesson(**results[subject]) for subject in subjects]
    how = (
        "fine-tunes alone, without Label Studio"
        if options.inner
        else "end to end with Label Studio, worker, gate and swap"
    )
    write_section(
        TITLE_INNER if options.inner else TITLE,
        f"Classes that `{PRESET}` was not trained on, each corrected on the given number of images, a "
        f"quarter of which the gate holds out; {how}. mIoU of the class on {options.fresh} unseen scenes, "
        "gIoU on the base validation set, and minutes from the first correction to the gate's decision. A "
        f"rejected version is measured too, but not served. {TARGETS}",
        "Medians over classes:",
        table(
            ["corrections", "mIoU before", "after", "base", "minutes", "promoted"], medians(lessons, counts)
        ),
        "By class:",
        table(
            ["class", "corrections", "mIoU before", "after", "base gIoU", "change", "minutes", "gate"],
            [lesson.row() for lesson in lessons],
        ),
    )


if __name__ == "__main__":
    main()
