"""Saved annotations to regions with their phrases.

The editor saves a region as several results with one ID: the mask, and its phrase with a copy of the
geometry. Results are paired by ID; their meaning follows from from_name, never from type or order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from backend.labelstudio import prompt_text
from backend.labelstudio.config import LabelingConfig
from sspsam import brush_rle_to_mask
from sspsam.images.masks import BoolMask, MaskFormatError


@dataclass(frozen=True)
class Region:
    """One mask of an annotation."""

    region_id: str
    phrase: str | None
    """None if the annotator gave none."""
    mask: BoolMask
    """(H, W) in the original frame."""
    label: str | None
    score: float | None = None
    """The model's score, if the model proposed the mask."""


@dataclass(frozen=True)
class AnnotationContent:
    """Content of an annotation."""

    regions: tuple[Region, ...] = ()
    no_target_phrases: tuple[str, ...] = ()
    """Phrases without a match in the image."""
    problems: tuple[str, ...] = field(default=())
    """Results that could not be parsed, as messages."""


def read_annotation(annotation: Mapping[str, Any], config: LabelingConfig) -> AnnotationContent:
    """Parses an annotation or a prediction from Label Studio's API.

    Cancelled (skipped) annotations are parsed like others: see `annotation["was_cancelled"]`.

    Args:
        annotation: A dict with a `result` list.
        config: The project's labeling config.

    Returns:
        Regions in the order of their first result; empty and unreadable masks are left out, the latter with
        an entry in `problems`.
    """
    results = [result for result in annotation.get("result") or [] if isinstance(result, Mapping)]
    regions, problems = [], []
    for region_id, group in _by_id(results).items():
        try:
            region = _region(region_id, group, config)
        except MaskFormatError as error:
            problems.append(f"region {region_id}: {error}")
            continue
        if region is not None and region.mask.any():
            regions.append(region)
    return AnnotationContent(tuple(regions), no_target_phrases(annotation, config), tuple(problems))


def no_target_phrases(annotation: Mapping[str, Any], config: LabelingConfig) -> tuple[str, ...]:
    """Returns phrases without a match: those in the prompt box that no region has.

    Entries that were never answered are excluded: they say nothing about the image.
    """
    results = [result for result in annotation.get("result") or [] if isinstance(result, Mapping)]
    groups = _by_id(results).values()
    taken = {
        prompt_text.phrase_key(_phrase(brush, group, config) or "")
        for group in groups
        for brush in group
        if _is_brush(brush, config)
    }
    answered = [entry for entry in prompt_entries(results, config) if not prompt_text.has_failed(entry)]
    return tuple(phrase for key, phrase in prompt_text.distinct(answered).items() if key not in taken)


def prompt_entries(results: Iterable[Mapping[str, Any]], config: LabelingConfig) -> list[str]:
    """Returns the phrases in the prompt box, oldest first, notes included."""
    name = config.prompt.name if config.prompt else None
    found = (text for result in results if result.get("from_name") == name for text in _texts(result))
    return [phrase for text in found for phrase in prompt_text.split(text)]


def region_texts(
    annotation: Mapping[str, Any], config: LabelingConfig
) -> dict[str, tuple[str | None, str | None]]:
    """Returns phrase and label of each region by ID, without decoding masks."""
    results = [result for result in annotation.get("result") or [] if isinstance(result, Mapping)]
    return {
        region_id: (_phrase(brush, group, config), _label(brush))
        for region_id, group in _by_id(results).items()
        for brush in group
        if _is_brush(brush, config)
    }


def _by_id(results: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault(str(result.get("id")), []).append(result)
    return groups


def _region(region_id: str, group: list[Mapping[str, Any]], config: LabelingConfig) -> Region | None:
    """Returns the region of results that share an ID; None without a brush mask."""
    brush = next((result for result in group if _is_brush(result, config)), None)
    if brush is None:
        return None
    return Region(region_id, _phrase(brush, group, config), _mask(brush), _label(brush), _score(brush))


def _score(brush: Mapping[str, Any]) -> float | None:
    score = brush.get("score")
    return float(score) if isinstance(score, int | float) else None


def _label(brush: Mapping[str, Any]) -> str | None:
    labels = brush["value"].get("brushlabels")
    return str(labels[0]) if isinstance(labels, list) and labels and labels[0] is not None else None


def _is_brush(result: Mapping[str, Any], config: LabelingConfig) -> bool:
    value = result.get("value")
    named = str(result.get("from_name")) in config.mask_names
    return named and isinstance(value, Mapping) and "rle" in value


def _mask(brush: Mapping[str, Any]) -> BoolMask:
    try:
        height, width = int(brush["original_height"]), int(brush["original_width"])
    except (KeyError, TypeError, ValueError) as error:
        raise MaskFormatError("a brush result without the size of its image") from error
    return brush_rle_to_mask(brush["value"]["rle"], height, width)


def _phrase(brush: Mapping[str, Any], group: list[Mapping[str, Any]], config: LabelingConfig) -> str | None:
    """The text under the region; in forms without one, the region's note."""
    name = config.phrase.name if config.phrase else None
    texts = [text for result in group if result.get("from_name") == name for text in _texts(result)]
    meta = brush.get("meta")
    if not texts and isinstance(meta, Mapping):
        texts = prompt_text.entries(meta.get("text"))
    return prompt_text.plain_phrase(texts[0]) or None if texts else None


def _texts(result: Mapping[str, Any]) -> list[str]:
    value = result.get("value")
    return prompt_text.entries(value.get("text")) if isinstance(value, Mapping) else []
