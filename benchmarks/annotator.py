"""A simulated annotator works through sticker scenes in rounds: what the model learns from what is submitted.

The backend answers; the annotator accepts, repairs, draws, deletes and overlooks at fixed rates, and submits.
The worker collects the annotation, fine-tunes, compares, and the backend swaps, as in production; only Label
Studio is a stand-in. Phrases are chosen so that the shipped weights answer as in a trial with a real
annotator: of 83 phrases 32 right, 16 wrong or half right, and 35 with nothing found, 31 of them falsely.

The same is done by the rule of release 0.2, which exists in this file alone: each phrase left in the prompt
box is a label "no target", and the gate compares corrected masks only. After each round, the serving version
is measured on scenes that are never submitted.

    python benchmarks/annotator.py [--scenes 60] [--rounds 3] [--unseen 16] [--folder FOLDER]
    python benchmarks/annotator.py --scenes 6 --rounds 1 --steps 3 --unseen 2         # a few minutes

The scenes are those of a small project: ten things, half of which the shipped weights have never seen.
Fine-tunes follow the recipe that ships; `--steps` makes them shorter, with smaller data sets to replay and to
validate on.

With `--folder`, versions and results are kept, and an interrupted run continues with its next round.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import numpy as np
from common.annotator import Answer, annotate, choose_phrases
from common.results import Results, fine_tuning
from common.sections import table, write_section
from common.serving import environment, redis_at
from flask.testing import FlaskClient

import worker.finetuning.recipes
from backend.labelstudio import prompt_text
from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.labelstudio.predictions import region_results, text_result
from backend.labelstudio.prompt_text import phrase_key
from backend.serving.engine import Engine
from backend.settings import Settings
from backend.web.app import create_app
from finetune.data.records import RefRecord, read_records, write_records
from finetune.data.sample import Sample
from finetune.data.stickers.dataset import StickerDataset
from finetune.evaluation.evaluate import evaluate
from sspsam import Predictor
from tests.worker.label_studio_server import LabelStudioServer
from worker import jobs
from worker.corrections import collector
from worker.finetuning.decisions import maybe_start_finetune
from worker.finetuning.recipes import RECIPES
from worker.finetuning.runs import (
    HELD_OUT_FILE,
    RUN_FILE,
    STOPPING_FILE,
    TRAIN_FILE,
    Run,
    run_folder,
)
from worker.queueing.queues import training_queue
from worker.services import Services

PRESET = "ssp-sam-demo"
PROJECT = 1
CONFIG = LabelingConfig.parse(RECOMMENDED_CONFIG)
SEED = 31
CANDIDATES, PHRASES = 12, 6
"""Phrases of a scene to choose from, and chosen."""
OLD_RULE = "release 0.2"
RULES = (OLD_RULE, "present")
NOUNS = "koala,guitar,umbrella,tractor,cactus,dog,apple,car,tree,book"
"""The first half is new to the shipped weights."""
QUICK = {
    "VALIDATION_DATA": "stickers/val?nouns=core,base&count=6&phrases=4",
    "REPLAY_DATA": "stickers/train?nouns=core,base&count=16",
}
"""Settings of a trial of a few minutes. Too little to learn without forgetting."""
GIVEN_UP_S = 600.0
TITLE = "Learning from an annotator"


@dataclass(frozen=True)
class Round:
    """State after a round; 0 is the shipped weights. Shares and mIoU in 0..1, on unseen scenes."""

    rule: str
    number: int
    version: str
    outcome: str
    """Of the fine-tune: promoted or rejected, and its change of gIoU on the held-out labels in points; or why
    there was none."""
    accepted: float
    """Share of phrases answered rightly: a right mask, or rightly none."""
    miou: float
    false_nothing: float
    """Share of the phrases with a target for which nothing was found."""
    candidate_miou: float | None
    """Of the round's candidate, promoted or not."""
    labels: Mapping[str, int]
    """Records by kind, of all rounds so far."""
    minutes: float

    def row(self) -> list[str]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.labels.items())
        return [
            self.rule,
            str(self.number),
            self.outcome,
            f"{100 * self.accepted:.0f} %",
            f"{100 * self.miou:.1f}",
            f"{100 * self.false_nothing:.0f} %",
            "" if self.candidate_miou is None else f"{100 * self.candidate_miou:.1f}",
            kinds or "none",
        ]


@dataclass
class Loop:
    """The service, and its annotator. Task n shows scene n - 1."""

    server: LabelStudioServer
    client: FlaskClient
    engine: Engine
    services: Services

    def choose(self, scenes: Sequence[Sequence[Sample]], path: Path) -> list[list[Sample]]:
        """Chooses phrases so that the shipped weights' answers have RATES. The file keeps the choice."""
        if not path.exists():
            answers = [self.ask(task, samples) for task, samples in enumerate(scenes, start=1)]
            ids, kinds = choose_phrases(answers, PHRASES)
            print("phrases by the shipped weights' answer:", dict(kinds), flush=True)
            path.write_text(json.dumps(ids), encoding="utf-8")
        known = set(json.loads(path.read_text(encoding="utf-8")))
        return [[sample for sample in samples if sample.sample_id in known] for samples in scenes]

    def run(
        self,
        rule: str,
        scenes: Sequence[Sequence[Sample]],
        unseen: Sequence[Sequence[Sample]],
        numbers: Sequence[int],
        results: Results,
    ) -> None:
        """Performs the rounds that have no result yet."""
        share = math.ceil(len(scenes) / max(1, numbers[-1]))
        for number in numbers:
            if (rule, number) in results:
                continue
            since_s, outcome, candidate = time.monotonic(), "none", ""
            if number > 0:
                first = (number - 1) * share
                for task, samples in enumerate(scenes[first : first + share], start=first + 1):
                    self.submit(task, samples, rule)
                outcome, candidate = self.fine_tune(rule)
            minutes = (time.monotonic() - since_s) / 60
            done = self.measure(rule, number, outcome, minutes, unseen, first_task=len(scenes) + 1)
            if candidate:
                done = replace(done, candidate_miou=self.miou_of(candidate, unseen))
            print(*done.row(), f"{minutes:.1f} minutes", sep=" | ", flush=True)
            results.add(asdict(done))

    def ask(self, task: int, samples: Sequence[Sample]) -> list[Answer]:
        """Enters the phrases of the samples like the editor."""
        assert CONFIG.prompt is not None
        phrases = [sample.phrase for sample in samples]
        body = {
            "tasks": [{"id": task, "data": self.server.tasks[task]["data"]}],
            "project": f"{PROJECT}.1",
            "label_config": RECOMMENDED_CONFIG,
            "params": {"context": {"result": [text_result(CONFIG.prompt, "p", phrases)]}},
        }
        response = self.client.post("/predict", json=body)
        content = read_annotation(response.get_json()["results"][0], CONFIG)
        found = {phrase_key(region.phrase or ""): region for region in content.regions}
        nothing = {phrase_key(phrase) for phrase in content.found_nothing}
        missing = {phrase_key(phrase) for phrase in phrases} - found.keys() - nothing
        if missing:
            raise RuntimeError(f"no answer to {missing}: {response.get_data(as_text=True):.300}")
        regions = [found.get(phrase_key(phrase)) for phrase in phrases]
        return [
            Answer(sample, region.region_id, region.mask)
            if region is not None
            else Answer(sample, "", np.zeros_like(sample.mask))
            for sample, region in zip(samples, regions, strict=True)
        ]

    def submit(self, task: int, samples: Sequence[Sample], rule: str) -> None:
        """Annotates a task and collects the annotation."""
        assert CONFIG.prompt is not None
        assert CONFIG.absent is not None
        regions, absent, left = annotate(self.ask(task, samples))
        if rule == OLD_RULE:
            absent, left = [*absent, *left], []
        drawn = [result for region in regions for result in region_results(region, CONFIG)]
        entries = [prompt_text.with_no_match(phrase) for phrase in left]
        boxes = [text_result(CONFIG.prompt, "p", entries), text_result(CONFIG.absent, "a", absent)]
        saved = datetime.now(UTC).isoformat()
        self.server.save(task, task, [*drawn, *boxes], updated_at=saved)
        collector.collect(self.services, PROJECT, task)

    def miou_of(self, version: str, unseen: Sequence[Sequence[Sample]]) -> float:
        """Mean IoU of a version that need not serve."""
        predictor = Predictor.from_preset(PRESET, "cpu")
        predictor.load_trainable(self.services.store.load(version))
        return float(evaluate(predictor, list(chain(*unseen))).overall["mIoU"] or 0.0)

    def fine_tune(self, rule: str) -> tuple[str, str]:
        """Fine-tunes on all labels, and waits until a promoted version serves.

        Returns:
            The outcome, and the candidate's version; empty without one.
        """
        services, queue = self.services, training_queue(self.services.redis)
        queue.empty()
        decision = maybe_start_finetune(services, PROJECT, "now")
        if not decision.start:
            return decision.reason, ""
        [run_id] = queue.get_job_ids()
        if rule == OLD_RULE:
            records = services.collection(PROJECT).records()
            apply_old_rule(services.settings.model_dir, run_id, records)
        result = jobs.finetune(PROJECT, run_id)
        assert isinstance(result, dict)
        print(result["reason"], flush=True)
        until_s = time.monotonic() + GIVEN_UP_S
        while result["status"] == "promoted" and self.engine.version_of(str(PROJECT)) != result["version"]:
            if time.monotonic() > until_s:
                raise RuntimeError(f"{result['version']} does not serve")
            time.sleep(0.2)
        figures = services.store.get(result["version"]).metrics
        change = figures["candidate"]["gIoU"] - figures["incumbent"]["gIoU"]
        return f"{result['status']}, {100 * change:+.1f}", result["version"]

    def measure(
        self,
        rule: str,
        number: int,
        outcome: str,
        minutes: float,
        unseen: Sequence[Sequence[Sample]],
        first_task: int,
    ) -> Round:
        """Measures the serving version on unseen scenes."""
        answers = [
            answer
            for task, samples in enumerate(unseen, start=first_task)
            for answer in self.ask(task, samples)
        ]
        with_target = [answer for answer in answers if answer.sample.has_target]
        kinds = Counter(record.kind for record in self.services.collection(PROJECT).records())
        return Round(
            rule=rule,
            number=number,
            version=self.engine.version_of(str(PROJECT)),
            outcome=outcome,
            accepted=float(np.mean([answer.is_right for answer in answers])),
            miou=float(np.mean([answer.iou for answer in answers])),
            false_nothing=float(np.mean([not answer.mask.any() for answer in with_target])),
            candidate_miou=None,
            labels=dict(sorted(kinds.items())),
            minutes=minutes,
        )


def apply_old_rule(model_dir: Path, run_id: str, records: Sequence[RefRecord]) -> None:
    """Changes a run's data: all absences are learned, and only corrected masks are compared, which stand for
    themselves.
    """
    run = run_folder(model_dir, run_id)
    held_out, stopping = (
        {record.image_sha256 for record in read_records(path)} if path.exists() else set()
        for path in (run / HELD_OUT_FILE, run / STOPPING_FILE)
    )
    compared = [record for record in records if record.image_sha256 in held_out and record.corrected]
    learned = [record for record in records if record.image_sha256 not in held_out | stopping]
    write_records(run / HELD_OUT_FILE, compared)
    write_records(run / TRAIN_FILE, learned)
    described = replace(Run.read(run), asked={})
    (run / RUN_FILE).write_text(json.dumps(asdict(described)), encoding="utf-8")


def main() -> None:
    """Runs the missing rounds and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of each fine-tune; default: by the recipe, 300 at most")
    parser.add_argument("--unseen", type=int, default=16, help="scenes to measure on")
    parser.add_argument("--nouns", default=NOUNS, help="nouns, or groups of them, in the scenes")
    parser.add_argument("--folder", type=Path, help="keeps versions and results, to continue later")
    options = parser.parse_args()
    if options.steps:
        recipe = replace(RECIPES[PRESET], min_steps=options.steps, max_steps=options.steps, most_views=2)
        worker.finetuning.recipes.RECIPES = {**RECIPES, PRESET: recipe}
    with tempfile.TemporaryDirectory(prefix="sspsam-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        sizes = {name: getattr(options, name) for name in ("scenes", "rounds", "steps", "unseen", "nouns")}
        results = Results(folder / "rounds.jsonl", {**fine_tuning(PRESET), **sizes}, ("rule", "number"))
        numbers = range(options.rounds + 1)
        nouns = options.nouns.split(",")
        scenes = [*draw(options.scenes, "val", nouns), *draw(options.unseen, "test", nouns)]
        for rule in RULES:
            if any((rule, number) not in results for number in numbers):
                with running(folder / rule.replace(" ", "-"), scenes, QUICK if options.steps else {}) as loop:
                    chosen = loop.choose(scenes, folder / "phrases.json")
                    loop.run(rule, chosen[: options.scenes], chosen[options.scenes :], numbers, results)
    rounds = [Round(**results[rule, number]) for rule in RULES for number in numbers]
    write_section(
        TITLE,
        f"A simulated annotator submits {options.scenes} scenes in rounds, {PHRASES} phrases each. Of 83 "
        "phrases, the shipped weights answer about 32 rightly and 16 wrongly or half rightly, and find "
        f"nothing for 35, for 31 falsely. After each round: a fine-tune"
        f"{f' of {options.steps} steps' if options.steps else ' by the recipe that ships'}, with its "
        "change of gIoU in points, as the gate estimates it; the gate; the swap. Measured on "
        f"{options.unseen} scenes that are never submitted: phrases answered rightly (IoU at least 0.8, or "
        "rightly nothing), mIoU, and phrases with a target for which nothing was found, by the serving "
        "version; mIoU of the round's candidate, promoted or not. By the rule of release 0.2, a phrase left "
        "in the prompt box is a label.",
        table(
            [
                "rule",
                "round",
                "fine-tune",
                "accepted",
                "mIoU",
                "false nothing",
                "candidate's mIoU",
                "labels so far",
            ],
            [one.row() for one in rounds],
        ),
    )


def draw(count: int, split: str, nouns: Sequence[str]) -> list[list[Sample]]:
    """Scenes with candidate phrases."""
    data = StickerDataset(split, count=count, phrases_per_scene=CANDIDATES, nouns=nouns, seed=SEED)
    return [[data[scene * CANDIDATES + turn] for turn in range(CANDIDATES)] for scene in range(count)]


@contextmanager
def running(folder: Path, scenes: Sequence[Sequence[Sample]], settings: Mapping[str, str]) -> Iterator[Loop]:
    """A backend, a Redis and a stand-in for Label Studio, whose tasks are the scenes."""
    with (
        tempfile.TemporaryDirectory(prefix="sspsam-") as name,
        LabelStudioServer() as server,
        redis_at(Path(name)) as redis_url,
    ):
        more = {
            "PRESET": PRESET,
            "DEVICE": "cpu",
            "PREDICT_TIMEOUT_S": "600",
            **settings,
        }
        os.environ.update(environment(server.url, redis_url, folder, **more))
        server.add_project(PROJECT)
        for task, samples in enumerate(scenes, start=1):
            server.add_task(task, PROJECT, samples[0].image)
        app = create_app(Settings())
        engine = app.extensions["sspsam"].engine
        engine.start()
        try:
            if not engine.wait(GIVEN_UP_S):
                raise RuntimeError("the model was not loaded")
            yield Loop(server, app.test_client(), engine, Services(Settings()))
        finally:
            engine.stop()


if __name__ == "__main__":
    main()
