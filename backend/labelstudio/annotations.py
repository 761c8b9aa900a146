"""Saved annotations to regions with their phrases.

The editor saves a region as several results with one ID: the mask, and its phrase with a copy of the
geometry. Results are paired by ID; their meaning follows from from_name and to_name, not from type or order.

A label is what a person meant: a mask that was submitted, or a phrase that a person confirmed to be absent,
by an entry in the box of confirmed absences. What is left in the prompt box is not a label: the model found
nothing for it, or was never asked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from backend.labelstudio import prompt_text
from backend.labelstudio.config import LabelingConfig, Tag
from sspsam.images.image_io import IMAGE_MAX_PIXELS
from sspsam.images.masks import BoolMask, MaskFormatError, MaskRuns, brush_rle_to_runs

OUR_ID = re.compile("[0-9a-f]{12}")
"""IDs of regions that were made for a phrase: see `predictions.region_id_for`."""


MASKS_PER_IMAGE = 100
"""As many masks of the largest image are read from one annotation; of smaller images more, in proportion."""
RLE_BYTES_PER_ANNOTATION = 2**26
"""Of all masks of an annotation."""


@dataclass(frozen=True)
class Region:
    """One mask of an annotation."""

    region_id: str
    phrase: str | None
    """None if the annotator gave none."""
    runs: MaskRuns
    label: str | None
    score: float | None = None
    """The model's score, if the model proposed the mask."""

    @property
    def mask(self) -> BoolMask:
        """(H, W) in the original frame; made at each call, so that no two masks need be in memory."""
        return self.runs.to_mask()

    @property
    def hw(self) -> tuple[int, int]:
        """Size of the mask's image."""
        return self.runs.height, self.runs.width


@dataclass(frozen=True)
class AnnotationContent:
    """Content of an annotation, as far as it is on the image of the masks."""

    regions: tuple[Region, ...] = ()
    no_target_phrases: tuple[str, ...] = ()
    """Phrases that a person confirmed to be absent from the image."""
    found_nothing: tuple[str, ...] = ()
    """Phrases for which the model found nothing, neither confirmed nor labelled by hand: not labels."""
    not_asked: tuple[str, ...] = ()
    """Phrases that no model has answered: not labels."""
    problems: tuple[str, ...] = field(default=())
    """Results that are left out, as messages."""


class _Budget:
    """Bounds what the masks of one annotation take: few bytes can stand for many pixels."""

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self._pixels_left = MASKS_PER_IMAGE * max_pixels
        self._bytes_left = RLE_BYTES_PER_ANNOTATION

    def spend(self, pixels: int, size_bytes: int) -> None:
        """Counts a mask, before it is read.

        Raises:
            MaskFormatError: the masks together are too large.
        """
        self._pixels_left -= pixels
        self._bytes_left -= size_bytes
        if self._pixels_left < 0 or self._bytes_left < 0:
            raise MaskFormatError(
                f"the masks before it in its annotation have {MASKS_PER_IMAGE * self.max_pixels} pixels or "
                f"{RLE_BYTES_PER_ANNOTATION} bytes together, the most that are read"
            )


def read_annotation(
    annotation: Mapping[str, Any], config: LabelingConfig, max_pixels: int = IMAGE_MAX_PIXELS
) -> AnnotationContent:
    """Parses an annotation or a prediction from Label Studio's API.

    Cancelled (skipped) annotations are parsed like others: see `annotation["was_cancelled"]`.

    Args:
        annotation: A dict with a `result` list.
        config: The project's labeling config.
        max_pixels: Masks of larger images are refused before they are read.

    Returns:
        Regions in the order of their first result. Empty masks are left out; so are unreadable ones, those on
        other images, and shapes that are not brush masks, with an entry in `problems`.
    """
    groups = _by_id(_results(annotation))
    regions, problems = [], []
    elsewhere: Counter[str] = Counter()
    budget = _Budget(max_pixels)
    for region_id, group in groups.items():
        try:
            region = _region(region_id, group, config, budget)
        except MaskFormatError as error:
            problems.append(f"region {region_id}: {error}")
            continue
        if region is not None and not region.runs.is_empty:
            regions.append(region)
        elsewhere.update({_place(brush) for brush in group if _is_foreign_brush(brush, config)})
    problems += [f"{count} masks on the image “{name}” are left out" for name, count in elsewhere.items()]
    return AnnotationContent(tuple(regions), *_phrases_without_mask(annotation, config), tuple(problems))


def no_target_phrases(annotation: Mapping[str, Any], config: LabelingConfig) -> tuple[str, ...]:
    """Returns the phrases that a person confirmed to be absent: those in the `absent` box.

    A phrase with a region, of whatever shape, is present.
    """
    return _phrases_without_mask(annotation, config)[0]


def _phrases_without_mask(
    annotation: Mapping[str, Any], config: LabelingConfig
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Phrases confirmed to be absent, those for which the model found nothing, and those not asked."""
    results = _results(annotation)
    present = drawn_phrases(annotation, config)
    absent = prompt_text.distinct(absent_entries(results, config))
    entries = prompt_entries(results, config)
    asked = prompt_text.distinct(filter(prompt_text.found_nothing, entries))
    typed = prompt_text.distinct(entries)
    settled = present | absent.keys()
    answered = settled | asked.keys()
    return (
        tuple(phrase for key, phrase in absent.items() if key not in present),
        tuple(phrase for key, phrase in asked.items() if key not in settled),
        tuple(phrase for key, phrase in typed.items() if key not in answered),
    )


def drawn_phrases(annotation: Mapping[str, Any], config: LabelingConfig) -> set[str]:
    """Returns the keys of the phrases that have a region: a mask, a polygon or any other shape."""
    return {
        prompt_text.phrase_key(phrase)
        for region_id, group in _by_id(_results(annotation)).items()
        if (phrase := _phrase(region_id, group, config))
    }


def prompt_entries(results: Iterable[Mapping[str, Any]], config: LabelingConfig) -> list[str]:
    """Returns the phrases in the prompt box, oldest first, notes included."""
    return _entries_of(config.prompt, results)


def absent_entries(results: Iterable[Mapping[str, Any]], config: LabelingConfig) -> list[str]:
    """Returns the phrases in the box of confirmed absences."""
    return _entries_of(config.absent, results)


def _entries_of(tag: Tag | None, results: Iterable[Mapping[str, Any]]) -> list[str]:
    texts = (text for result in results if is_of(result, tag) for text in _texts(result))
    return [phrase for text in texts for phrase in prompt_text.split(text)]


def is_of(result: Mapping[str, Any], tag: Tag | None) -> bool:
    """Whether a result was made with a tag, on that tag's image."""
    return tag is not None and result.get("from_name") == tag.name and _is_on(result, tag.to_name)


def region_texts(
    annotation: Mapping[str, Any], config: LabelingConfig
) -> dict[str, tuple[str | None, str | None]]:
    """Returns phrase and label of each region by ID, without decoding masks."""
    return {
        region_id: (_phrase(region_id, group, config), _label(brush))
        for region_id, group in _by_id(_results(annotation)).items()
        if (brush := _brush(group, config)) is not None
    }


def _results(annotation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [result for result in annotation.get("result") or [] if isinstance(result, Mapping)]


def _by_id(results: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault(str(result.get("id")), []).append(result)
    return groups


def _region(
    region_id: str, group: list[Mapping[str, Any]], config: LabelingConfig, budget: _Budget
) -> Region | None:
    """Returns the region of results that share an ID; None without a brush mask."""
    brush = _brush(group, config)
    if brush is None:
        return None
    phrase, runs = _phrase(region_id, group, config), _runs(brush, budget)
    return Region(region_id, phrase, runs, _label(brush), _score(brush))


def _brush(group: list[Mapping[str, Any]], config: LabelingConfig) -> Mapping[str, Any] | None:
    return next((result for result in group if is_brush(result, config)), None)


def _score(brush: Mapping[str, Any]) -> float | None:
    score = brush.get("score")
    try:
        return float(score) if isinstance(score, int | float) else None
    except OverflowError:
        return None


def _label(brush: Mapping[str, Any]) -> str | None:
    labels = brush["value"].get("brushlabels")
    return str(labels[0]) if isinstance(labels, list) and labels and labels[0] is not None else None


def is_brush(result: Mapping[str, Any], config: LabelingConfig) -> bool:
    """Whether a result is a mask on the image of the config's masks."""
    return _has_mask(result, config) and config.image is not None and _is_on(result, config.image.name)


def _is_foreign_brush(result: Mapping[str, Any], config: LabelingConfig) -> bool:
    return _has_mask(result, config) and not is_brush(result, config)


def _has_mask(result: Mapping[str, Any], config: LabelingConfig) -> bool:
    value = result.get("value")
    named = str(result.get("from_name")) in config.mask_names
    return named and isinstance(value, Mapping) and "rle" in value


def _is_on(result: Mapping[str, Any], image: str) -> bool:
    """Whether a result is on an image; of several pages in one image tag, on the first."""
    return result.get("to_name", image) == image and not result.get("item_index")


def _place(result: Mapping[str, Any]) -> str:
    page = result.get("item_index")
    return f"{result.get('to_name', '')}{f', page {page}' if page else ''}"


def _runs(brush: Mapping[str, Any], budget: _Budget) -> MaskRuns:
    try:
        height, width = int(brush["original_height"]), int(brush["original_width"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MaskFormatError("a brush result without the size of its image") from error
    rle = brush["value"]["rle"]
    if not isinstance(rle, list):
        raise MaskFormatError("brush RLE is not a list of numbers 0..255")
    budget.spend(height * width, len(rle))
    return brush_rle_to_runs(rle, height, width, budget.max_pixels)


def _phrase(region_id: str, group: list[Mapping[str, Any]], config: LabelingConfig) -> str | None:
    """The text under the region; the region's note, if that is where we write phrases.

    In forms with a text under each region, notes belong to the annotators. Ours were written before the form
    had that text, under IDs made by us.
    """
    texts = [text for result in group if is_of(result, config.phrase) for text in _texts(result)]
    if not texts and (config.phrase is None or OUR_ID.fullmatch(region_id)):
        notes = (meta for result in group if isinstance(meta := result.get("meta"), Mapping))
        texts = [text for note in notes for text in prompt_text.entries(note.get("text"))]
    return prompt_text.plain_phrase(texts[0]) or None if texts else None


def _texts(result: Mapping[str, Any]) -> list[str]:
    value = result.get("value")
    return prompt_text.entries(value.get("text")) if isinstance(value, Mapping) else []
