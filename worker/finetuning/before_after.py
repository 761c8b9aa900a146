"""Pictures of what a fine-tune changed, as files of its version: the start page shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from backend.web.fine_tunes import PICTURES

if TYPE_CHECKING:
    from finetune.evaluation.html_report import MeasuredOn

SHOWN = 3
"""Of the answers that became best, and of those that became worst."""
QUALITY = 80


def write_before_after(
    folder: Path, held_out: MeasuredOn, pictures: Mapping[str, Image.Image]
) -> dict[str, Path]:
    """Writes pictures of the answers that changed most, and the list of them.

    Args:
        folder: Where to; what an earlier attempt wrote is replaced.
        held_out: Both versions' answers.
        pictures: Sample id -> both answers side by side.

    Returns:
        Name -> file. The list alone when nothing changed.
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
