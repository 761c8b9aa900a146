"""Runs: the frozen input of a fine-tune.

A run is a folder, `<MODEL_DIR>/runs/<run id>/`. It fixes the training and the held-out data, so a fine-tune
that is interrupted and restarted ends the same. Its id is derived from the data's digest and the base
version. The folder is removed once the version is published and judged.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from finetune.data.records import RefRecord, records_digest, write_records
from sspsam import VersionStore
from sspsam.files import replace_text
from sspsam.version_store.lines import line_of_project
from sspsam.version_store.store import (
    DamagedVersionError,
    ForeignVersionError,
    UnknownVersionError,
    VersionCard,
)
from worker.finetuning.composition import bound_absences
from worker.finetuning.policy import choose_stopping
from worker.finetuning.population import count_asked
from worker.lines import Line, Split, save_split
from worker.records import sample_key

logger = logging.getLogger(__name__)

TRAIN_FILE = "train.jsonl"
STOPPING_FILE = "stopping.jsonl"
"""The part of the training side used for early stopping; absent if there are few labels."""
HELD_OUT_FILE = "held-out.jsonl"
UNANSWERED_FILE = "unanswered.jsonl"
"""The unanswered phrases on the held-out images; absent if there are none."""
RUN_FILE = "run.json"
_DIGITS = 16
_DIGEST = re.compile(rf"[0-9a-f]{{{_DIGITS}}}-")
"""Of the digest, in a run's id."""


@dataclass(frozen=True)
class Run:
    """Description of a fine-tune; stored as run.json."""

    run_id: str
    line: str
    """The line of versions that it continues."""
    projects: tuple[int, ...]
    """Projects whose records it learns from."""
    preset: str
    base_version: str
    """The serving version, which the candidate is compared with."""
    start_version: str
    """The version whose weights training starts from: the serving version, unless a person chose another."""
    digest: str
    """Digest of all records on both sides."""
    samples: tuple[str, ...]
    """sample_key of every record; the next fine-tune does not count these as new."""
    asked: dict[str, dict[str, int]] = field(default_factory=dict)
    """What its comparison stands for: see `population.Asked`. Empty in runs of earlier releases: their
    held-out labels stand for themselves."""

    @property
    def restarts(self) -> bool:
        """Whether it does not continue the serving version."""
        return self.start_version != self.base_version

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Reads the run.json of a run or of a version. One of release 0.2 names its project alone.

        Raises:
            FileNotFoundError: there is none.
        """
        values = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        if (project := values.pop("project", None)) is not None:
            own = {"line": line_of_project(project), "projects": (project,)}
            values = {**values, **own, "start_version": values["base_version"]}
        return cls(**{**values, "projects": tuple(values["projects"]), "samples": tuple(values["samples"])})


def base_of(store: VersionStore, line: Line) -> str:
    """The version that a fine-tune of a line must beat: the serving one. After new frozen weights were
    installed, backends refuse versions that were trained on others, and the base weights serve.
    """
    serving = store.current(line.name)
    try:
        if serving != store.base_version:
            store.verify(serving)
    except (ForeignVersionError, DamagedVersionError, UnknownVersionError) as error:
        logger.warning("fine-tunes of %s start from the base weights: %s", line.described, error)
        return store.base_version
    return serving


def run_id_for(line: Line, digest: str, base_version: str, start_version: str = "") -> str:
    """Derives the id of a fine-tune from its input; also the id of its job."""
    restart = f"-from-{start_version}" if start_version not in ("", base_version) else ""
    return f"finetune-{line.key}-{digest[:_DIGITS]}-{base_version}{restart}"


def is_of_line(run_id: str, line: Line) -> bool:
    """Whether a run's id was derived for a line: the name of another may begin like this one's."""
    prefix = f"finetune-{line.key}-"
    return run_id.startswith(prefix) and _DIGEST.match(run_id, len(prefix)) is not None


LEFT_AFTER_S = 24 * 3600
"""Age of a run's files without a job, after which none is about to be queued for them."""


def run_folder(model_dir: Path, run_id: str) -> Path:
    return model_dir / "runs" / run_id


def prepare_run(
    model_dir: Path,
    store: VersionStore,
    line: Line,
    records: Sequence[RefRecord],
    sides: Split,
    start_version: str = "",
    unanswered: Sequence[RefRecord] = (),
) -> Run:
    """Freezes the data of a fine-tune based on the serving version. Idempotent.

    Args:
        model_dir: Root of records and runs.
        store: Version store.
        line: The line and its projects.
        records: All records of the projects.
        sides: Side of every image in the records; stored permanently.
        start_version: Training starts from its weights; default: the serving version's.
        unanswered: The projects' phrases without an answer, which are no labels.
    """
    save_split(model_dir, line.name, sides)
    base_version, digest = base_of(store, line), records_digest(records)
    start_version = start_version or base_version
    run = Run(
        run_id=run_id_for(line, digest, base_version, start_version),
        line=line.name,
        projects=tuple(sorted({record.project for record in records})),
        preset=store.preset,
        base_version=base_version,
        start_version=start_version,
        digest=digest,
        samples=tuple(sorted({sample_key(record) for record in records})),
        asked=count_asked([*bound_absences(records, corrections_first=False), *unanswered]),
    )
    folder = run_folder(model_dir, run.run_id)
    training = [r for r in records if sides[r.image_sha256] == "train"]
    stopping = choose_stopping({r.image_sha256 for r in training if r.has_corrected_mask})
    # Accepted masks too: on corrections alone, any version does better than the one that was corrected.
    held_out = [r for r in records if sides[r.image_sha256] == "held-out"]
    trained_on = [r for r in training if r.image_sha256 not in stopping]
    write_records(folder / TRAIN_FILE, bound_absences(trained_on))
    if stopping:
        stopped_by = [r for r in training if r.image_sha256 in stopping]
        write_records(folder / STOPPING_FILE, bound_absences(stopped_by))
    write_records(folder / HELD_OUT_FILE, bound_absences(held_out, corrections_first=False))
    if held_out_unanswered := [r for r in unanswered if sides.get(r.image_sha256) == "held-out"]:
        write_records(folder / UNANSWERED_FILE, held_out_unanswered)
    replace_text(folder / RUN_FILE, json.dumps(asdict(run), indent=2))
    return run


def why_outdated(run: Run, line: Line, serving: str) -> str:
    """Why a run must not be performed any more; empty if it may be."""
    if run.base_version != serving:
        return f"{serving} serves {line.described} since this was decided"
    if run.line != line.name or not set(run.projects) <= set(line.projects):
        return f"the line {line.name} serves {line.described} since this was decided"
    return ""


def find_version(store: VersionStore, run_id: str) -> VersionCard | None:
    """Returns the version that a run published, if any."""
    return next((card for card in store.list() if card.data.get("run") == run_id), None)


def last_version(store: VersionStore, line: Line) -> VersionCard | None:
    """Returns the newest fine-tuned version of a line."""
    cards = _fine_tuned(store, line)
    return cards[-1] if cards else None


def learned_samples(store: VersionStore, line: Line) -> set[str]:
    """sample_key of every record that the last fine-tune of a line knew.

    A line without one has those of the last fine-tunes of its projects before there were lines.
    """
    newest = {card.line or card.data.get("project"): card for card in _fine_tuned(store, line)}
    own = newest.get(line.name)
    cards = [own] if own is not None else [*newest.values()]
    return {sample for card in cards if (run := run_of(store, card)) for sample in run.samples}


def run_of(store: VersionStore, card: VersionCard) -> Run | None:
    """Returns the run that made a version; None if it does not contain it."""
    path = store.file(card.version_id, RUN_FILE)
    return None if path is None else Run.read(path.parent)


def _fine_tuned(store: VersionStore, line: Line) -> list[VersionCard]:
    """Fine-tuned versions of a line, and of its projects before there were lines; oldest first."""
    return [
        card
        for card in store.list(line.name)
        if "run" in card.data and (card.line or card.data.get("project") in line.projects)
    ]


def discard_run(model_dir: Path, run_id: str) -> None:
    """Removes the folder of a published run: checkpoints are large."""
    shutil.rmtree(run_folder(model_dir, run_id), ignore_errors=True)


def discard_left_runs(model_dir: Path, has_job: Callable[[str], bool]) -> None:
    """Removes the folders of runs that failed or were superseded, a day after they were last written to.

    Args:
        model_dir: MODEL_DIR.
        has_job: Whether a job of this run is known, in whatever state: it may still be tried again.
    """
    oldest = time.time() - LEFT_AFTER_S
    for folder in run_folder(model_dir, "any").parent.glob("*"):
        try:
            last = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
        except FileNotFoundError:  # it is being written to, or removed
            continue
        if last < oldest and not has_job(folder.name):
            discard_run(model_dir, folder.name)
