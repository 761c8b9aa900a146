"""Runs: the frozen input of a fine-tune.

A run is a folder, `<MODEL_DIR>/runs/<run id>/`. It fixes the training and the held-out data, so a fine-tune
that is interrupted and restarted ends the same. Its id is derived from the data's digest and the base
version. The folder is removed once the version is published and judged.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from finetune.data.records import RefRecord, records_digest, write_records
from sspsam import VersionStore
from sspsam.files import replace_text
from sspsam.version_store.store import VersionCard
from worker.finetuning.composition import bound_absences
from worker.finetuning.policy import Side, choose_stopping
from worker.records import records_folder, sample_key

TRAIN_FILE = "train.jsonl"
STOPPING_FILE = "stopping.jsonl"
"""The part of the training side used for early stopping; absent if there are few labels."""
HELD_OUT_FILE = "held-out.jsonl"
RUN_FILE = "run.json"
SPLIT_FILE = "split.json"


@dataclass(frozen=True)
class Run:
    """Description of a fine-tune; stored as run.json."""

    run_id: str
    project: int
    preset: str
    base_version: str
    """The serving version: training starts from it, and the candidate must beat it."""
    digest: str
    """Digest of all records on both sides."""
    samples: tuple[str, ...]
    """sample_key of every record; the next fine-tune does not count these as new."""

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Reads the run.json of a run or of a version.

        Raises:
            FileNotFoundError: there is none.
        """
        values = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        return cls(**{**values, "samples": tuple(values["samples"])})


def run_id_for(project: int, digest: str, base_version: str) -> str:
    """Derives the id of a fine-tune from its input; also the id of its job."""
    return f"{data_id_for(project, digest)}-{base_version}"


def data_id_for(project: int, digest: str) -> str:
    """Common prefix of the ids of all fine-tunes on the same data."""
    return f"finetune-{project}-{digest[:16]}"


def run_folder(model_dir: Path, run_id: str) -> Path:
    return model_dir / "runs" / run_id


def load_sides(model_dir: Path) -> dict[str, Side]:
    """Reads the split shared by all fine-tunes of all projects: image sha256 -> side."""
    try:
        text = (records_folder(model_dir) / SPLIT_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    sides: dict[str, Side] = json.loads(text)
    return sides


def prepare_run(
    model_dir: Path,
    store: VersionStore,
    project: int,
    records: Sequence[RefRecord],
    sides: Mapping[str, Side],
) -> Run:
    """Freezes the data of a fine-tune based on the serving version. Idempotent.

    Args:
        model_dir: Root of records and runs.
        store: Version store.
        project: Label Studio's project id.
        records: All records of the project.
        sides: Side of every image in the records; stored permanently.
    """
    records_folder(model_dir).mkdir(parents=True, exist_ok=True)
    replace_text(records_folder(model_dir) / SPLIT_FILE, json.dumps(dict(sides)))
    base_version, digest = store.current(), records_digest(records)
    samples = tuple(sorted({sample_key(record) for record in records}))
    run = Run(run_id_for(project, digest, base_version), project, store.preset, base_version, digest, samples)
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
    write_records(folder / HELD_OUT_FILE, bound_absences(held_out))
    replace_text(folder / RUN_FILE, json.dumps(asdict(run), indent=2))
    return run


def find_version(store: VersionStore, run_id: str) -> VersionCard | None:
    """Returns the version that a run published, if any."""
    return next((card for card in store.list() if card.data.get("run") == run_id), None)


def last_version(store: VersionStore, project: int) -> VersionCard | None:
    """Returns the newest version of a project."""
    cards = [card for card in store.list() if card.data.get("project") == project]
    return cards[-1] if cards else None


def last_run(store: VersionStore, project: int) -> Run | None:
    """Returns the run of the newest version of a project."""
    card = last_version(store, project)
    path = None if card is None else store.file(card.version_id, RUN_FILE)
    return None if path is None else Run.read(path.parent)


def discard_run(model_dir: Path, run_id: str) -> None:
    """Removes the folder of a published run: checkpoints are large."""
    shutil.rmtree(run_folder(model_dir, run_id), ignore_errors=True)
