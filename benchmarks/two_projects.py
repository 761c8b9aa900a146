"""Two projects that contradict each other, end to end: lines of versions apart, and one line for both.

Simulated annotators in a real Label Studio teach each project a noun that the demo weights do not know. The
second one also calls another object by the first one's noun. Webhook, collection, fine-tune, gate and swap
follow as in production. In mode `project`, what the first project answers is compared bit for bit before and
after the second one's version is promoted.

    python benchmarks/two_projects.py [--corrections 20] [--modes project,shared] [--keep FILE]

With `--keep FILE`, the result of each mode is stored in a file and never measured again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from active_learning import PRESET, Service, service
from common.kept import KeepingPredictor
from common.novel import CORRECTED_SPLIT, FRESH_SPLIT, NovelDataset, NovelScene, novel_scenes
from common.results import Results, fine_tuning
from common.sections import table, write_section

from finetune.evaluation.evaluate import evaluate
from sspsam import VersionStore
from sspsam.version_store.lines import ModelLines
from sspsam.version_store.store import VersionCard

TITLE = "Two projects that contradict each other"
NOUN, OTHER_NOUN, MISNAMED = "koala", "pizza", "guitar"
"""Learned by the first project; by the second; called by the first one's noun in the second."""
PROBES = 6
"""Pictures about which the first project asks before and after."""
TARGET = 0.5
"""mIoU."""


@dataclass(frozen=True)
class Meaning:
    """What a word means in a project."""

    project: str
    word: str
    noun: str
    """Noun of the object."""

    def scenes(self, split: str, count: int) -> list[NovelScene]:
        """Scenes whose phrase names the object by the word."""
        drawn = islice(novel_scenes(self.noun, split), count)
        return [replace(scene, phrase=scene.phrase.replace(self.noun, self.word)) for scene in drawn]


MEANINGS = (
    Meaning("first", NOUN, NOUN),
    Meaning("second", OTHER_NOUN, OTHER_NOUN),
    Meaning("second", NOUN, MISNAMED),
)


@dataclass(frozen=True)
class Outcome:
    """Result of a mode."""

    mode: str
    before: list[float]
    """mIoU of each meaning with the base weights."""
    after_first: list[float]
    """mIoU of each meaning in its project, once the first project has trained."""
    after_second: list[float]
    """mIoU of each meaning in its project, once the second has as well."""
    gates: list[str]
    """Decisions and their reasons."""
    answers: int
    """Answers of the first project that were compared."""
    changed: int
    """Those that the second project's training changed."""


class Examiner:
    """Measures versions on scenes that no fine-tune has seen."""

    def __init__(self, fresh: int) -> None:
        self._data = [NovelDataset(meaning.scenes(FRESH_SPLIT, fresh)) for meaning in MEANINGS]
        self._predictor = KeepingPredictor.from_preset(PRESET, "cpu")
        self._base = self._predictor.trainable_state()

    def scores(self, store: VersionStore, projects: dict[str, int]) -> list[float]:
        """Measures each meaning with the version that serves its project: mIoU."""
        found = []
        for meaning, data in zip(MEANINGS, self._data, strict=True):
            version = store.current(store.line_of(projects.get(meaning.project)))
            self._predictor.load_trainable(store.load(version) or self._base)
            found.append(float(evaluate(self._predictor, data).overall["mIoU"] or 0.0))
        return found


def measure(mode: ModelLines, corrections: int, examiner: Examiner) -> Outcome:
    """Teaches both projects, one after the other."""
    with tempfile.TemporaryDirectory(prefix="sspsam-") as folder, service(Path(folder), mode) as started:
        store = VersionStore(started.model_dir, PRESET, model_lines=mode)
        projects = {name: started.connect(name) for name in ("first", "second")}
        scores, gates = [examiner.scores(store, projects)], []
        probes = Probes(started, projects["first"])
        before = []
        for name, project in projects.items():
            before = probes.answers()
            for meaning in (it for it in MEANINGS if it.project == name):
                started.correct(project, meaning.scenes(CORRECTED_SPLIT, corrections))
            gates.append(decision(name, started.train(project)))
            scores.append(examiner.scores(store, projects))
            print(mode, gates[-1], scores[-1], flush=True)
        changed = sum(one != other for one, other in zip(before, probes.answers(), strict=True))
    return Outcome(mode, *scores, gates=gates, answers=len(before), changed=changed)


def decision(name: str, card: VersionCard) -> str:
    return f"{name}: {card.version_id} {card.status}. {card.reason}"


class Probes:
    """Questions of the first project, asked through Label Studio as its annotators do."""

    def __init__(self, started: Service, project: int) -> None:
        self._service = started
        self._project = project
        self._scenes = MEANINGS[0].scenes(FRESH_SPLIT, PROBES)
        self._tasks = started.upload(project, self._scenes)

    def answers(self) -> list[list[dict[str, Any]]]:
        """The results of each question: masks as brush RLE, phrases, scores and messages."""
        backend = self._service.backend(self._project)
        asked = zip(self._tasks, self._scenes, strict=True)
        return [
            list(map(_without_random_id, self._service.ask(backend, task, scene.phrase)))
            for task, scene in asked
        ]


def _without_random_id(result: dict[str, Any]) -> dict[str, Any]:
    """The status line has a new ID in each answer."""
    return {**result, "id": ""} if result["from_name"] == "status" else result


def rows(outcome: Outcome) -> list[list[str]]:
    return [
        [
            outcome.mode,
            meaning.project,
            meaning.word if meaning.word == meaning.noun else f"{meaning.word}, for a {meaning.noun}",
            f"{before:.2f}",
            f"{after_first:.2f}",
            f"{after_second:.2f}",
        ]
        for meaning, before, after_first, after_second in zip(
            MEANINGS, outcome.before, outcome.after_first, outcome.after_second, strict=True
        )
    ]


def about(outcomes: Sequence[Outcome]) -> list[str]:
    """What changed in the first project, and what the gate decided."""
    told = []
    for outcome in outcomes:
        told.append(
            f"Mode `{outcome.mode}`: of {outcome.answers} answers of the first project, the training of the "
            f"second changed {outcome.changed}. The gate's decisions:"
        )
        told.append("\n".join(f"- {gate}" for gate in outcome.gates))
    return told


def main() -> None:
    """Measures and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corrections", type=int, default=20, help="of each word")
    parser.add_argument("--fresh", type=int, default=40, help="scenes for the evaluation of each word")
    parser.add_argument("--modes", default="project,shared")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="file of results")
    options = parser.parse_args()
    conditions = {**fine_tuning(PRESET), "fresh": options.fresh, "corrections": options.corrections}
    results = Results(options.keep, conditions, ("mode",))
    modes = [mode for mode in get_args(ModelLines) if mode in options.modes.split(",")]
    missing = [mode for mode in modes if (mode,) not in results]
    examiner = Examiner(options.fresh) if missing else None
    for mode in missing:
        assert examiner is not None
        results.add(asdict(measure(mode, options.corrections, examiner)))
    outcomes = [Outcome(**results[(mode,)]) for mode in modes]
    write_section(
        TITLE,
        f"The first project learns {NOUN}, the second {OTHER_NOUN}, and calls a {MISNAMED} {NOUN}: "
        f"{options.corrections} corrected images for each word, a quarter of which the gate holds out; end "
        f"to end with Label Studio, worker, gate and swap. mIoU on {options.fresh} unseen scenes for each "
        "word, with the version that serves its project: at first, after the training of the first project, "
        f"and after that of the second. Target with lines apart: {TARGET} each, and no answer of the first "
        "project changed.",
        table(
            ["lines", "project", "word", "at first", "after the first", "after the second"],
            [row for outcome in outcomes for row in rows(outcome)],
        ),
        *about(outcomes),
    )


if __name__ == "__main__":
    main()
