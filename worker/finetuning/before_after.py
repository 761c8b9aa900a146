"""Before/after images of a fine-tune, stored as files of its version and shown on the start page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from backend.console.fine_tunes import PICTURES

if TYPE_CHECKING:
    from finetune.evaluation.html_report import MeasuredOn

SHOWN = 3
"""Number of most improved answers, and of most degraded ones."""
QUALITY = 80


def write_before_after(
    folder: Path, held_out: MeasuredOn, pictures: Mapping[str, Image.Image]
) -> dict[str, Path]:
    """Writes images of the answers that changed most, and an index of them.

    Args:
        folder: Output folder; files from an earlier attempt are replaced.
        held_out: Both versions' answers.
        pictures: Sample id -> image of both answers side by side.

    Returns:
        Name -> file. Only the index if nothing changed.
    """
    from finetune.evaluation.changes import list_changes, most_changed

    best, worst = most_changed(list_changes(held_out.incumbent, held_out.candidate), SHOWN)
    drawn = [change for change in (*best, *worst) if change.sample_id in pictures]
    files, listed = {}, []
    for number, change in enumerate(drawn, start=1):
        name = f"before-after-{number}.webp"
        pictures[change.sample_id].save(folder / name, "WEBP", quality=QUALITY)
        files[name] = folder / name
        listed.append({"file": name, "phrase": change.phrase, "before": change.before, "after": change.after})
    (folder / PICTURES).write_text(json.dumps(listed, indent=2), encoding="utf-8")
    return {PICTURES: folder / PICTURES, **files}
