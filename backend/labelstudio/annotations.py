"""Saved annotations to regions with their phrases.

The editor saves a region as several results with one ID: the mask, and its phrase with a copy of the
geometry. Results are paired by ID; their meaning follows from from_name and to_name, not from type or order.

A label is what a person meant: a mask that was submitted, or a phrase that a person confirmed to be absent,
by an entry in the box of confirmed absences. What is left in the prompt box is not a label: the model found
nothing for it, or was never asked.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from backend.labelstudio import prompt_text
from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.prompt_text import phrase_key
from backend.labelstudio.regions.controls import SHAPE_FIELD, Kind, RegionControl, Tag
from backend.labelstudio.regions.parts import group_parts, object_id_of
from backend.labelstudio.regions.shapes import Box, size_of, value_to_box, value_to_runs
from sspsam.images.image_io import IMAGE_MAX_PIXELS
from sspsam.images.masks import BoolMask, MaskFormatError, MaskRuns, union_of_runs

OUR_ID = re.compile("[0-9a-f]{12}")
"""IDs of regions that were made for a phrase: see `predictions.region_id_for`."""


MASKS_PER_IMAGE = 100
"""As many masks of the largest image are read from one annotation; of smaller images more, in proportion."""
RLE_BYTES_PER_ANNOTATION = 2**26
"""Of all masks of an annotation."""
RUNS_PER_ANNOTATION = 2**23
"""Of all masks of an annotation, which are in memory together: few bytes of PNG can stand for millions."""


@dataclass(frozen=True)
class Region:
    """One object of an annotation: a mask, or a box."""

    region_id: str
    phrase: str | None
    """None if the annotator gave none."""
    runs: MaskRuns
    """The mask; of a box, the pixels in it."""
    label: str | None
    score: float | None = None
    """The model's score, if the model proposed the mask."""
    kind: Kind = "brush"
    """Kind of region."""
    box_xyxy: Box | None = None
    """(x0, y0, x1, y1) in pixels, of a box; None for a mask."""

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
    """The masks: of brushes, bitmasks and polygons."""
    boxes: tuple[Region, ...] = ()
    """The boxes, which are no masks."""
    no_target_phrases: tuple[str, ...] = ()
    """Phrases that a person confirmed to be absent from the image."""
    found_nothing: tuple[str, ...] = ()
    """Phrases for which the model found nothing, neither confirmed nor labelled by hand: not labels."""
    not_asked: tuple[str, ...] = ()
    """Phrases that no model has answered: not labels."""
    problems: tuple[str, ...] = field(default=())
    """Results that are left out, as messages."""


class MaskBudget:
    """Bounds what the masks of one annotation take: few bytes can stand for many pixels."""

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self._pixels_left = MASKS_PER_IMAGE * max_pixels
        self._bytes_left = RLE_BYTES_PER_ANNOTATION
        self._runs_left = RUNS_PER_ANNOTATION

    def spend(self, height: int, width: int, size_bytes: int) -> None:
        """Counts a mask, before it is read. One that is refused takes nothing from those behind it.

        Raises:
            MaskFormatError: it is too large, or the masks together are.
        """
        if min(height, width) <= 0 or height * width > self.max_pixels:
            raise MaskFormatError(f"a mask of {height} x {width} pixels; at most {self.max_pixels} are read")
        if height * width > self._pixels_left or size_bytes > self._bytes_left:
            raise MaskFormatError(
                "there is no room for it: the masks before it in its annotation have "
                f"{MASKS_PER_IMAGE * self.max_pixels} pixels or {RLE_BYTES_PER_ANNOTATION} bytes together, "
                "the most that are read"
            )
        self._pixels_left -= height * width
        self._bytes_left -= size_bytes

    def keep(self, runs: MaskRuns) -> MaskRuns:
        """Counts a mask that was read.

        Raises:
            MaskFormatError: the masks together take too much memory.
        """
        if runs.lengths.size > self._runs_left:
            raise MaskFormatError(f"the masks of its annotation have more than {RUNS_PER_ANNOTATION} runs")
        self._runs_left -= runs.lengths.size
        return runs


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
        Regions in the order of their first result, the polygons of an object joined. Empty masks are left
        out; so are unreadable ones, those on other images, with an entry in `problems`. Shapes of other tags
        are ignored.
    """
    groups = regions_by_id(annotation)
    regions, problems, empty = [], [], set()
    elsewhere: Counter[str] = Counter()
    budget = MaskBudget(max_pixels)
    for region_id, group in groups.items():
        try:
            region = _region(region_id, group, config, budget)
        except MaskFormatError as error:
            problems.append(f"region {region_id}: {error}")
            continue
        if region is not None and region.runs.is_empty:
            empty.add(region_id)
        elif region is not None:
            regions.append(region)
        elsewhere.update({place_of(result) for result in group if _is_foreign_region(result, config)})
    problems += [f"{count} masks on the image “{name}” are left out" for name, count in elsewhere.items()]
    masks = tuple(_join_parts([region for region in regions if region.box_xyxy is None]))
    boxes = tuple(region for region in regions if region.box_xyxy is not None)
    return AnnotationContent(masks, boxes, *phrases_without_mask(annotation, config, empty), tuple(problems))


def _join_parts(regions: Sequence[Region]) -> Iterator[Region]:
    """One region per object."""
    meanings = [(phrase_key(each.phrase or ""), each.label, each.kind, each.hw) for each in regions]
    for object_id, places in group_parts([region.region_id for region in regions], meanings):
        parts = [regions[place] for place in places]
        runs = parts[0].runs if len(parts) == 1 else union_of_runs([part.runs for part in parts])
        yield replace(parts[0], region_id=object_id, runs=runs)


def no_target_phrases(annotation: Mapping[str, Any], config: LabelingConfig) -> tuple[str, ...]:
    """Returns the phrases that a person confirmed to be absent: those in the `absent` box.

    A phrase with a region, of whatever shape, is present.
    """
    return phrases_without_mask(annotation, config)[0]


def phrases_without_mask(
    annotation: Mapping[str, Any], config: LabelingConfig, empty: Container[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Returns the phrases confirmed to be absent, those that found nothing, and those not asked.

    Args:
        annotation: A dict with a `result` list.
        config: The project's labeling config.
        empty: IDs of regions without pixels, which make no phrase present.
    """
    results = _results(annotation)
    present = drawn_phrases(annotation, config, empty)
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


def drawn_phrases(
    annotation: Mapping[str, Any], config: LabelingConfig, empty: Container[str] = ()
) -> set[str]:
    """Returns the keys of the phrases that have a region: a mask, a polygon or any other shape.

    Args:
        annotation: A dict with a `result` list.
        config: The project's labeling config.
        empty: IDs of regions that do not count.
    """
    return {
        prompt_text.phrase_key(phrase)
        for region_id, group in regions_by_id(annotation).items()
        if region_id not in empty and (phrase := phrase_of(region_id, group, config))
    }


def empty_regions(annotation: Mapping[str, Any], config: LabelingConfig, phrases: Container[str]) -> set[str]:
    """Returns the IDs of the regions without pixels among those of phrases, which are given by their keys."""
    budget = MaskBudget(IMAGE_MAX_PIXELS)
    found = set()
    for region_id, group in regions_by_id(annotation).items():
        if prompt_text.phrase_key(phrase_of(region_id, group, config) or "") not in phrases:
            continue
        with suppress(MaskFormatError):
            region = _region(region_id, group, config, budget)
            if region is not None and region.runs.is_empty:
                found.add(region_id)
    return found


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
    return tag is not None and result.get("from_name") == tag.name and is_on(result, tag.to_name)


def region_texts(
    annotation: Mapping[str, Any], config: LabelingConfig
) -> dict[str, tuple[str | None, str | None]]:
    """Returns phrase and label of each region by ID, without decoding masks."""
    found = {}
    for region_id, group in regions_by_id(annotation).items():
        shape = _shape(group, config)
        if shape is not None:
            control = config.controls[str(shape["from_name"])]
            found[region_id] = (phrase_of(region_id, group, config), _label(group, control, config))
    return found


def _results(annotation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [result for result in annotation.get("result") or [] if isinstance(result, Mapping)]


def regions_by_id(annotation: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Returns the results of each region by its ID, in the order of their first result.

    Imported results may have none: each is a region of its own.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for place, result in enumerate(_results(annotation)):
        region_id = result.get("id")
        groups.setdefault(f"result-{place}" if region_id is None else str(region_id), []).append(result)
    return groups


def _region(
    region_id: str, group: list[Mapping[str, Any]], config: LabelingConfig, budget: MaskBudget
) -> Region | None:
    """Returns the region of results that share an ID; None without a shape of a region control."""
    shape = _shape(group, config)
    if shape is None:
        return None
    control = config.controls[str(shape["from_name"])]
    phrase, label, score = (
        phrase_of(region_id, group, config),
        _label(group, control, config),
        score_of(shape),
    )
    height, width = original_hw(shape)
    budget.spend(height, width, size_of(shape["value"], control.kind, height, width))
    box = value_to_box(shape["value"], height, width) if control.kind == "rectangle" else None
    runs = budget.keep(value_to_runs(shape["value"], control.kind, height, width, budget.max_pixels))
    return Region(region_id, phrase, runs, label, score, control.kind, box)


def _shape(group: list[Mapping[str, Any]], config: LabelingConfig) -> Mapping[str, Any] | None:
    return next((result for result in group if is_region(result, config)), None)


def score_of(shape: Mapping[str, Any]) -> float | None:
    """The model's score of a region, if the model proposed it."""
    score = shape.get("score")
    try:
        number = float(score) if isinstance(score, int | float) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _label(group: list[Mapping[str, Any]], control: RegionControl, config: LabelingConfig) -> str | None:
    """The label of a region.

    If the label of another region control was selected in the browser, the editor has added it to the region
    as a result of that control: it is what the annotator meant.
    """
    own = selected = None
    for result in group:
        value = result.get("value")
        if not isinstance(value, Mapping):
            continue
        name = str(result.get("from_name"))
        maker = config.controls.get(name)
        if name in (control.name, control.labels_tag):
            own = own or _first(value.get("labels" if control.labels_tag else control.result_type))
        elif maker is not None and maker.has_own_labels:
            selected = selected or _first(value.get(maker.result_type))
    return selected or own


def _first(labels: object) -> str | None:
    return str(labels[0]) if isinstance(labels, list) and labels and labels[0] is not None else None


def is_region(result: Mapping[str, Any], config: LabelingConfig) -> bool:
    """Whether a result is a region of a region control, on the image of the config's masks."""
    return _has_shape(result, config) and config.image is not None and is_on(result, config.image.name)


def _is_foreign_region(result: Mapping[str, Any], config: LabelingConfig) -> bool:
    return _has_shape(result, config) and not is_region(result, config)


def _has_shape(result: Mapping[str, Any], config: LabelingConfig) -> bool:
    value, control = result.get("value"), config.controls.get(str(result.get("from_name")))
    return control is not None and isinstance(value, Mapping) and SHAPE_FIELD[control.kind] in value


def is_on(result: Mapping[str, Any], image: str) -> bool:
    """Whether a result is on an image; of several pages in one image tag, on the first."""
    return result.get("to_name", image) == image and not result.get("item_index")


def place_of(result: Mapping[str, Any]) -> str:
    """Names the image, and its page, that a result is on."""
    page = result.get("item_index")
    return f"{result.get('to_name', '')}{f', page {page}' if page else ''}"


def original_hw(result: Mapping[str, Any]) -> tuple[int, int]:
    """(H, W) of the image of a region's result.

    Raises:
        MaskFormatError: the result does not have it.
    """
    try:
        return int(result["original_height"]), int(result["original_width"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MaskFormatError("a region without the size of its image") from error


def phrase_of(region_id: str, group: list[Mapping[str, Any]], config: LabelingConfig) -> str | None:
    """The text under the region; the region's note, if that is where we write phrases.

    In forms with a text under each region, notes belong to the annotators. Ours were written before the form
    had that text, under IDs made by us; if that text is there and empty, the annotator has cleared it.
    """
    own = [result for result in group if is_of(result, config.phrase)]
    texts = [text for result in own for text in _texts(result)]
    if not own and (config.phrase is None or OUR_ID.fullmatch(object_id_of(region_id))):
        notes = (meta for result in group if isinstance(meta := result.get("meta"), Mapping))
        texts = [text for note in notes for text in prompt_text.entries(note.get("text"))]
    return prompt_text.plain_phrase(texts[0]) or None if texts else None


def _texts(result: Mapping[str, Any]) -> list[str]:
    value = result.get("value")
    return prompt_text.entries(value.get("text")) if isinstance(value, Mapping) else []
