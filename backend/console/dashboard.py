"""Content of the start page."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from backend.console.fine_tunes import FineTune, finite, how_trained, latest_fine_tunes
from backend.corrections import Tally, merged
from backend.errors import LabelingConfigError
from backend.labelstudio.config import LabelingConfig, MissingTag
from backend.service import Service, knows_stickers_only
from backend.serving.engine import EngineStatus
from backend.serving.served_lines import Refusal
from backend.state.known_projects import KnownProject
from backend.state.redis_store import Problem, RedisStore
from backend.state.skipped_items import SkippedItem, reason_of
from sspsam.version_store.lines import StoreState, line_of_project
from sspsam.version_store.store import VersionCard, VersionError

logger = logging.getLogger(__name__)

DEFAULT_METRIC = "mIoU"
ODD_VALUES = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""Errors of values that are not what they should be: of a damaged card, or of a damaged file."""
_TRIGGERS: Mapping[str, str] = {
    "annotation": "after an annotation was saved",
    "schedule": "on schedule",
    "start-training": "after Start Training",
    "after-finetune": "after a fine-tune",
    "fine-tune": "while fine-tuning",
}


@dataclass(frozen=True)
class VersionRow:
    """A row of the version table."""

    card: VersionCard
    training: str
    """How it was trained, in one sentence; empty for base weights."""
    serves: Sequence[str]
    """Who it serves: names of projects, or of lines without one; empty if it serves none on the page."""
    served_since: str
    """ISO 8601; empty for base weights and versions that never served."""
    metric: str
    before: float | None
    """Held-out score of the base version; 0..1."""
    after: float | None
    samples: int
    """Number of held-out samples behind both scores."""


@dataclass(frozen=True)
class ServingVersion:
    """A version that serves projects on the page."""

    version: str
    projects: Sequence[KnownProject]
    """Empty for requests without a project, if none is known."""
    row: VersionRow | None
    """None if its card cannot be read."""


@dataclass(frozen=True)
class ProjectRow:
    """A connected project."""

    project: KnownProject
    problem: str
    """Error from parsing the labeling config."""
    missing: Sequence[MissingTag]
    last_decision: str
    training: str
    last_event: str
    """Time of the last webhook, ISO 8601; empty if there was none."""
    problems: Sequence[Problem] = ()
    """Recent errors, newest first."""
    skipped: Sequence[SkippedItem] = ()
    """What background work left out, newest first."""


@dataclass(frozen=True)
class StartPage:
    """Everything on the page."""

    status: EngineStatus
    project: str
    """The project that the page is about; empty for all of them."""
    serving: Sequence[ServingVersion]
    versions: Sequence[VersionRow]
    """Newest first."""
    fine_tunes: Sequence[FineTune]
    """The latest, newest first."""
    projects: Sequence[ProjectRow]
    label_studio_url: str
    backend_url: str
    waiting_jobs: Mapping[str, int]
    """By queue."""
    corrections: Sequence[Tally] = ()
    """Over all labels and the projects on the page, by version, newest first."""
    corrected_labels: Sequence[Tally] = ()
    """By label, for the versions that serve these projects."""
    warnings: Sequence[str] = field(default=())
    stickers_only: bool = False
    """The base weights know no photographs."""


def start_page(service: Service, project: str = "") -> StartPage:
    """Collects the page's content; anything unreadable becomes a warning on the page.

    Args:
        service: The service.
        project: ID of a project: restricts the page to its line of versions and to the projects of that line.
    """
    status, known = service.engine.status(), service.redis_store.projects.all()
    line = service.engine.line_of(project) if project else None
    shown = [one for one in known if line is None or service.engine.line_of(one.project_id) == line]
    serving = _serving_projects(service, shown, project)
    warnings = [_refusal_text(refusal) for refusal in status.refusals if line in (None, refusal.line)]
    if not service.redis_store.alive():
        warnings.append("Redis does not respond: corrections are not collected. Check REDIS_URL.")
    if not service.settings.label_studio_api_key.get_secret_value():
        warnings.append("No API key for Label Studio: its images cannot be read. Set LABEL_STUDIO_API_KEY.")
    try:
        cards = service.versions.list(line)
        rows = _version_rows(cards, service.versions.state(), serving)
        fine_tunes = latest_fine_tunes(
            service.versions, [card for card in cards if line is None or card.line == line]
        )
    except (VersionError, OSError) as error:
        rows, fine_tunes = [], []
        warnings.append(f"Cannot read the version store: {error}")
    ids = {one.project_id for one in shown} | {project}
    tallies = [
        counted.tally
        for counted in service.redis_store.worker.corrections()
        if not project or str(counted.project) in ids
    ]
    by_version = {row.card.version_id: row for row in rows}
    return StartPage(
        status=status,
        project=project,
        serving=[
            ServingVersion(version, projects, by_version.get(version))
            for version, projects in serving.items()
        ],
        versions=rows[::-1],
        fine_tunes=fine_tunes,
        projects=[_project_row_or_problem(one, service) for one in shown],
        label_studio_url=service.settings.label_studio_for_browsers,
        backend_url=service.settings.backend_url,
        waiting_jobs=service.redis_store.worker.waiting_jobs(),
        corrections=_by_version(tallies, [row.card.version_id for row in rows]),
        corrected_labels=merged(replace(tally, version="") for tally in tallies if tally.version in serving),
        warnings=warnings,
        stickers_only=knows_stickers_only(service.settings),
    )


def _serving_projects(
    service: Service, shown: Sequence[KnownProject], project: str
) -> dict[str, list[KnownProject]]:
    """Version -> the projects on the page that it serves."""
    serving: dict[str, list[KnownProject]] = {}
    for one in shown:
        serving.setdefault(service.engine.version_of(one.project_id), []).append(one)
    return serving or {service.engine.version_of(project): []}


def _refusal_text(refusal: Refusal) -> str:
    where = f"{refusal.line}: " if refusal.line else ""
    return (
        f"{where}{refusal.version} was promoted but could not be loaded; {refusal.serving} serves instead: "
        f"{refusal.reason}"
    )


def _by_version(tallies: Sequence[Tally], versions: Sequence[str]) -> list[Tally]:
    """One row per version, newest first; deleted versions come last."""
    order = {version: place for place, version in enumerate(reversed(versions))}
    rows = merged(replace(tally, label="") for tally in tallies)
    return sorted(rows, key=lambda row: (order.get(row.version, len(order)), row.version))


def _version_rows(
    cards: Sequence[VersionCard], state: StoreState, serving: Mapping[str, Sequence[KnownProject]]
) -> list[VersionRow]:
    since = {entry.version_id: entry.at for line in state.every_line() for entry in line.history}
    names = {
        version: [_name(project) for project in projects] or ["requests without a project"]
        for version, projects in serving.items()
    }
    rows = []
    for card in cards:
        serves, at = names.get(card.version_id, ()), since.get(card.version_id, "")
        try:
            rows.append(_version_row(card, serves, at))
        except ODD_VALUES as error:
            logger.warning("version %s cannot be shown: %s", card.version_id, reason_of(error))
            rows.append(VersionRow(card, "", serves, at, "", None, None, 0))
    return rows


def _name(project: KnownProject) -> str:
    return project.title or f"project {project.project_id}"


def _version_row(card: VersionCard, serves: Sequence[str], served_since: str) -> VersionRow:
    metric = str(card.metrics.get("metric", DEFAULT_METRIC))
    return VersionRow(
        card=card,
        training=how_trained(card),
        serves=serves,
        served_since=served_since,
        metric=metric,
        before=_figure(card.metrics.get("incumbent"), metric),
        after=_figure(card.metrics.get("candidate"), metric),
        samples=int(card.metrics.get("held_out_samples") or 0),
    )


def _figure(figures: Any, metric: str) -> float | None:
    value = figures.get(metric) if isinstance(figures, Mapping) else None
    return finite(value)


def _project_row_or_problem(project: KnownProject, service: Service) -> ProjectRow:
    """A project that cannot be shown does not keep the others from the page."""
    skipped = service.skipped.of(project.project_id)
    try:
        line = service.engine.line_of(project.project_id)
        return replace(_project_row(project, line, service.redis_store), skipped=skipped)
    except ODD_VALUES as error:
        logger.exception("project %s cannot be shown", project.project_id)
        return ProjectRow(project, reason_of(error), (), "", "", "", skipped=skipped)


def _project_row(project: KnownProject, line: str, redis_store: RedisStore) -> ProjectRow:
    line = line or line_of_project(int(project.project_id))  # before the store has been read
    decision, progress = redis_store.worker.decision(line), redis_store.worker.progress(line)
    try:
        config = LabelingConfig.parse(project.label_config)
        config.require()
        missing, problem = config.missing(), ""
    except LabelingConfigError as error:
        missing, problem = [], str(error)
    return ProjectRow(
        project,
        problem,
        missing,
        _decision_text(decision),
        _progress_text(progress),
        redis_store.projects.get_last_webhook_time(project.project_id),
        redis_store.problems(project.project_id),
    )


def short_time(text: str) -> str:
    """Formats an ISO 8601 time as 2026-05-01 13:00 UTC."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError):
        return text


def _decision_text(decision: Mapping[str, Any]) -> str:
    if not decision:
        return ""
    trigger = _TRIGGERS.get(str(decision.get("trigger")), str(decision.get("trigger")))
    start = decision.get("start", decision.get("go"))  # the second as stored before 0.2
    deferred = decision.get("deferred", decision.get("put_off"))
    verdict = "Fine-tune" if start else "Not yet" if deferred else "No fine-tune"
    return f"{verdict}, {trigger}, {short_time(str(decision.get('at')))}: {decision.get('reason')}"


def _progress_text(progress: Mapping[str, Any]) -> str:
    """Such as "40 %, 2 minutes left (step 120 of 300)"."""
    step, steps = (finite(progress.get(name)) for name in ("step", "steps"))
    if step is None or not steps:
        return ""
    if step >= steps:
        return "100 %, both versions are being compared on the held-out labels"
    left_s = finite(progress.get("left_s"))
    left = f", {minutes(left_s)} left" if left_s is not None else ""
    return f"{math.floor(100 * step / steps)} %{left} (step {step:.0f} of {steps:.0f})"


def minutes(duration_s: float) -> str:
    """A rough duration with its unit."""
    if duration_s < 90:
        return f"{max(1, round(duration_s))} s"
    return f"{duration_s / 60:.0f} minutes" if duration_s < 5400 else f"{duration_s / 3600:.1f} hours"
