"""Performs a run: trains, evaluates both versions, publishes the candidate, applies the policy.

Errors:
    RunError: no usable sample is left for training or for evaluation.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.settings import Settings
from finetune.data.records import RefRecord, read_records, write_records
from sspsam import VersionStore
from sspsam.version_store.store import OutpacedError, VersionCard
from worker.finetuning.before_after import write_before_after
from worker.finetuning.composition import (
    MAX_ABSENT_SHARE,
    count_kinds,
    count_kinds_by_label,
    in_words,
)
from worker.finetuning.measuring import Measured, drawn_edges, measure, to_metrics, verdict_of
from worker.finetuning.population import kind_of
from worker.finetuning.recipes import base_validation, records_spec, train_config
from worker.finetuning.runs import (
    HELD_OUT_FILE,
    RUN_FILE,
    STOPPING_FILE,
    TRAIN_FILE,
    UNANSWERED_FILE,
    Run,
    base_of,
    find_version,
    run_folder,
    run_of,
    why_outdated,
)
from worker.lines import Line, named_projects

if TYPE_CHECKING:
    from finetune.training.config import TrainConfig
    from finetune.training.train import TrainResult

logger = logging.getLogger(__name__)

REPORT_FILE = "report.md"
REPORT_PAGE = "report.html"
DISTRIBUTION = "ssp-sam-assist"


Progress = Callable[[int, int], None]
"""Called with (step, steps)."""


class RunError(Exception):
    """A fine-tune is impossible; the message names what is missing."""


def perform(
    run: Run, store: VersionStore, settings: Settings, progress: Progress | None = None
) -> VersionCard:
    """Trains, evaluates and publishes; resumes an interrupted attempt.

    Args:
        run: The run; its folder holds the data.
        store: Receives the version.
        settings: Folders and device.
        progress: Called during training.

    Returns:
        The card of the candidate, to be judged by `judge_candidate`.

    Raises:
        RunError: no usable sample is left for training or for evaluation.
        CheckpointError, DatasetError, NonFiniteLossError, VersionError: see these classes.
    """
    folder = run_folder(settings.model_dir, run.run_id)
    for name in (TRAIN_FILE, HELD_OUT_FILE):
        keep_usable(folder / name, settings.images_dir)
    for name in (STOPPING_FILE, UNANSWERED_FILE):
        _keep_optional(folder / name, settings.images_dir)
    base = base_validation(run.preset, settings)
    _require_openable(base, "VALIDATION_DATA")
    config = train_config(run, store, settings)
    _require_openable(config.replay, "REPLAY_DATA")
    trained = _train(config, settings.finetune_processes, progress)
    measured = _measure(run, store, settings, trained.weights, base)
    return _publish(run, store, settings, config, trained, measured, base)


def judge_candidate(store: VersionStore, card: VersionCard, line: Line) -> VersionCard:
    """Promotes or rejects a candidate by the metrics on its card; a judged version is unchanged.

    It was compared with the version that served when the run was decided. If another serves the line by now,
    promoted or rolled back to by a person, or if the line serves other projects, it is rejected.
    """
    if card.status != "candidate":
        return card
    verdict, serving, run = verdict_of(card.metrics), store.current(line.name), run_of(store, card)
    outdated = why_outdated(run, line, base_of(store, line)) if run else ""
    logger.info("%s: %s", card.version_id, outdated or verdict.reason)
    if outdated or not verdict.promote:
        return store.reject(card.version_id, outdated or verdict.reason)
    try:
        return store.promote(card.version_id, verdict.reason, instead_of=serving)
    except OutpacedError:
        return judge_candidate(store, card, line)


def _require_openable(data: str | None, variable: str) -> None:
    """Checks before training that a data set exists and is not empty.

    Raises:
        RunError: it is.
    """
    from finetune.data.dataset import open_dataset
    from finetune.data.sample import DatasetError

    if data is None:
        return
    try:
        samples = len(open_dataset(data))
    except DatasetError as error:
        raise RunError(f"{variable}: {error}") from error
    if not samples:
        raise RunError(f"{variable}: {data!r} has no samples")


def keep_usable(path: Path, images: Path) -> None:
    """Removes records whose image or phrase cannot be read, and logs them.

    Raises:
        RunError: none is left.
    """
    usable = []
    pictures: dict[str, str] = {}
    for record in read_records(path):
        if record.image_sha256 not in pictures:
            pictures[record.image_sha256] = _picture_problem(record, images)
        problem = pictures[record.image_sha256] or _phrase_problem(record.phrase)
        if problem:
            logger.warning("sample %s is left out: %s", record.sample_id, problem)
        else:
            usable.append(record)
    if not usable:
        raise RunError(f"no sample of {path.name} can be used: their images or phrases cannot be read")
    write_records(path, usable)


def _keep_optional(path: Path, images: Path) -> None:
    """Removes unreadable records, and a file without any left: without early-stopping records, training runs
    to its last step.
    """
    try:
        if path.is_file():
            keep_usable(path, images)
    except RunError as error:
        logger.warning("%s", error)
        path.unlink()


def _phrase_problem(phrase: str) -> str:
    from sspsam import PhraseError
    from sspsam.phrases import tokenize

    try:
        tokenize([phrase])
    except PhraseError as error:
        return str(error)
    return ""


def _picture_problem(record: RefRecord, images: Path) -> str:
    from sspsam.images.image_io import PictureError, read_picture

    try:
        shape = read_picture(images / record.image_sha256).shape[:2]
    except PictureError as error:
        return str(error)
    return "" if shape == record.image_hw else f"its image is {shape} (H, W), not {record.image_hw}"


def _train(config: TrainConfig, processes: int, progress: Progress | None) -> TrainResult:
    """Trains in the given number of processes; 0 means one per GPU."""
    from finetune.training.launch import train_together
    from finetune.training.train import train

    def report(step: int, _terms: Mapping[str, float]) -> None:
        if progress is not None:
            progress(step, config.steps)

    count = processes or _gpus(config.device)
    return train(config, report) if count == 1 else train_together(config, count, report)


def _gpus(device: str) -> int:
    """Number of GPUs that a device setting selects; 1 for a single GPU or the CPU."""
    import torch

    return max(1, torch.cuda.device_count()) if device in ("auto", "cuda") else 1


def _measure(run: Run, store: VersionStore, settings: Settings, weights: Path, base: str | None) -> Measured:
    from finetune.data.dataset import open_dataset
    from sspsam import Predictor
    from sspsam.checkpoints.load import read_tensors

    folder = run_folder(settings.model_dir, run.run_id)
    predictor = Predictor.from_preset(run.preset, settings.device, settings.weights)
    incumbent = store.load(run.base_version) or predictor.trainable_state()
    held_out, unanswered = read_records(folder / HELD_OUT_FILE), folder / UNANSWERED_FILE
    return measure(
        predictor,
        incumbent,
        read_tensors(weights),
        open_dataset(records_spec(folder / HELD_OUT_FILE, settings.images_dir)),
        None if base is None else open_dataset(base),
        drawn_edges(held_out),
        {record.sample_id: kind_of(record) for record in held_out},
        open_dataset(records_spec(unanswered, settings.images_dir)) if unanswered.is_file() else None,
    )


def _publish(
    run: Run,
    store: VersionStore,
    settings: Settings,
    config: TrainConfig,
    trained: TrainResult,
    measured: Measured,
    base: str | None,
) -> VersionCard:
    from finetune.evaluation.html_report import FineTuneReport, render_report
    from finetune.evaluation.report import compare, comparison_to_markdown
    from finetune.training.curves import log_outcome
    from finetune.training.loop import LOG_NAME, read_log
    from sspsam.checkpoints.bundles import frozen_weights
    from sspsam.checkpoints.load import learned_words, read_tensors

    folder, state = run_folder(settings.model_dir, run.run_id), read_tensors(trained.weights)
    card = VersionCard(
        line=run.line,
        parent=run.start_version,
        parents_sha256=frozen_weights(run.preset, settings.weights),
        metrics=to_metrics(measured, base, settings.validation_tolerance, run),
        data=_data_summary(run, folder)
        | {"learned_words": learned_words(state), "steps": trained.steps, "best_step": trained.best_step},
        config=config.to_dict(),
        code_version=package_version(DISTRIBUTION),
    )
    verdict = verdict_of(card.metrics)
    page = render_report(
        FineTuneReport(
            title=f"Fine-tune of {run.start_version} on {named_projects(run.projects)}",
            promoted=verdict.promote,
            reason=verdict.reason,
            data={
                **card.data,
                **in_words(card.data),
                "frozen weights": ", ".join(card.parents_sha256),
                "code": card.code_version,
            },
            config=card.config,
            log=read_log(config.output_dir / LOG_NAME),
            measured=measured.sections,
            pictures=measured.pictures,
        )
    )
    comparison = compare(measured.held_out.incumbent, measured.held_out.candidate)
    files: dict[str, Path | str] = {
        REPORT_FILE: comparison_to_markdown(comparison, run.base_version, "candidate"),
        REPORT_PAGE: page,
        LOG_NAME: config.output_dir / LOG_NAME,
        RUN_FILE: folder / RUN_FILE,
        **write_before_after(folder, measured.held_out, measured.pictures),
    }
    # Publishes once, even if another worker considered this one dead and performs the same run:
    card = store.publish(state, card, files, published=lambda: find_version(store, run.run_id))
    log_outcome(config.output_dir, card.version_id, verdict.reason, page, card.metrics)
    return card


def _data_summary(run: Run, folder: Path) -> dict[str, Any]:
    """Counts of the training and held-out data."""
    train, held_out = read_records(folder / TRAIN_FILE), read_records(folder / HELD_OUT_FILE)
    stopping = folder / STOPPING_FILE
    return {
        "run": run.run_id,
        "digest": run.digest,
        **({"project": run.projects[0]} if len(run.projects) == 1 else {"projects": [*run.projects]}),
        "records": len(run.samples),
        "trained_on": len(train),
        "trained_on_images": len({record.image_sha256 for record in train}),
        "trained_on_corrections": sum(record.corrected for record in train),
        "trained_on_no_target": sum(record.mask_rle is None for record in train),
        "composition": count_kinds(train),
        "composition_by_label": count_kinds_by_label(train),
        "maximum_share_confirmed_absent": MAX_ABSENT_SHARE,
        "annotations": len({record.annotation for record in (*train, *held_out)}),
        "held_out": len(held_out),
        "stopped_by": len(read_records(stopping)) if stopping.is_file() else 0,
        "labels": dict(Counter(record.label for record in train if record.label).most_common()),
        "served_versions": sorted({record.served_version or "by hand" for record in train}),
    }
