"""A fine-tune as a standalone HTML page: decision and reason, curves, tables, images, data.

The page loads nothing: curves are inline SVG, images are embedded.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from finetune.evaluation.changes import Change, GroupChange, group_changes, list_changes, most_changed
from finetune.evaluation.evaluate import EvaluationResult
from finetune.evaluation.report import compare, difference_in_words, percent
from finetune.training.loop import LOG_FRAME

PLOT_HW = (120, 260)
"""Plot area of one curve, px."""
PICTURE_QUALITY = 80

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class MeasuredOn:
    """Both models on one data set."""

    title: str
    incumbent: EvaluationResult
    candidate: EvaluationResult


@dataclass(frozen=True)
class FineTuneReport:
    """Content of the page."""

    title: str
    promoted: bool
    reason: str
    """The comparison that decided, as text."""
    data: Mapping[str, object]
    """Summary of the training data."""
    config: Mapping[str, object]
    log: Sequence[Mapping[str, Any]]
    """Lines of the training's log."""
    measured: Sequence[MeasuredOn]
    """Held-out corrections first."""
    pictures: Mapping[str, Image.Image]
    """Sample ID of the first data set -> both answers side by side."""


@dataclass(frozen=True)
class Curve:
    """A quantity over training steps, ready to be drawn."""

    name: str
    path: str
    """Points of an SVG polyline."""
    low: float
    high: float
    last: float
    last_step: int


def render_report(report: FineTuneReport) -> str:
    """Writes the page."""
    environment = Environment(
        loader=PackageLoader("finetune"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"percent": percent, "points": points, "data_uri": picture_uri}
    page = environment.get_template("fine-tune.html")
    sections = [_section(measured) for measured in report.measured]
    best, worst = most_changed(sections[0]["changes"]) if sections else ([], [])
    return page.render(
        report=report,
        sections=sections,
        curves=curves_of(report.log),
        plot_hw=PLOT_HW,
        shown=[
            ("Twelve largest improvements", _with_picture(best, report)),
            ("Twelve largest losses", _with_picture(worst, report)),
        ],
    )


def curves_of(log: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """All quantities of a training's log over its steps."""
    names = {name: None for line in log for name in line if name not in LOG_FRAME}
    found = ((name, [(line["step"], line[name]) for line in log if name in line]) for name in ("lr", *names))
    return [_curve(name, points) for name, points in found if points]


def picture_uri(picture: Image.Image) -> str:
    """An image as a data URI."""
    data = BytesIO()
    picture.save(data, "WEBP", quality=PICTURE_QUALITY)
    return f"data:image/webp;base64,{b64encode(data.getvalue()).decode()}"


def points(difference: float) -> str:
    """A difference of metrics in 0..1, in percentage points with sign."""
    return f"{100 * difference:+.1f}"


def _curve(name: str, points: Points) -> Curve:
    """Scaled to the plot; a single point becomes a horizontal line."""
    steps, values = zip(*points, strict=True)
    low, high, (height, width) = min(values), max(values), PLOT_HW
    across, up = max(1, steps[-1] - steps[0]), (high - low) or 1.0
    places = [
        f"{width * (step - steps[0]) / across:.1f},{height * (high - value) / up:.1f}"
        for step, value in zip(steps, values, strict=True)
    ]
    if len(places) == 1:
        places.append(f"{width},{places[0].split(',')[1]}")
    return Curve(name, " ".join(places), low, high, values[-1], int(steps[-1]))


def _section(measured: MeasuredOn) -> dict[str, Any]:
    changes = list_changes(measured.incumbent, measured.candidate)
    figures = [
        (name, measured.incumbent.overall.get(name), after)
        for name, after in measured.candidate.overall.items()
    ]
    groups: list[tuple[str, list[GroupChange]]] = [
        ("Family of phrase", group_changes(changes, lambda change: change.family)),
        ("Label", group_changes(changes, lambda change: change.label)),
    ]
    return {
        "title": measured.title,
        "sentence": difference_in_words(compare(measured.incumbent, measured.candidate)),
        "changes": changes,
        "figures": figures,
        "groups": [(name, rows) for name, rows in groups if rows],
    }


def _with_picture(
    changes: Sequence[Change], report: FineTuneReport
) -> list[tuple[Change, Image.Image | None]]:
    return [(change, report.pictures.get(change.sample_id)) for change in changes]
