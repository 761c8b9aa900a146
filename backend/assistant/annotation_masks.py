"""Which masks are in the annotation that a click or a box was made in.

A request names neither the annotation nor the annotator. What it contains is the drafts that the requesting
annotator has on the task, each up to AUTOSAVE_S old. From these follow three kinds of masks:

    certain   in the annotator's only draft, or in the draft that contains an earlier gesture of the series
    possible  displayed since the draft was saved, or in an annotation without a draft: they may have been
              deleted, refused, or displayed in another annotation or to another annotator
    others    everything else on the task, which a gesture never applies to

If a gesture is on a possible mask, Label Studio is asked for its drafts until one contains the gesture: the
editor saves a draft at most AUTOSAVE_S after a change, and the gesture is a change. That draft is the
annotation as the annotator sees it. If none arrives, only masks displayed to this annotator with the current
draft remain; without a draft none do, and the gesture creates a new object.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import BoundedSemaphore, Lock
from typing import Any, Protocol

import numpy as np
from cachetools import LRUCache

from backend.errors import BackendError
from backend.labelstudio.annotations import is_region, original_hw, region_texts
from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.interactions import Interaction
from backend.labelstudio.regions.controls import SHAPE_FIELD, Kind
from backend.labelstudio.regions.shapes import size_of, value_to_runs
from backend.queries import Task, annotator_of, draft_version_of
from backend.serving.batch_queue import Caller
from backend.state.displayed_masks import DisplayedMask, PackedMask, VisibleMask, join_parts, mask_under
from sspsam import coco_rle_to_mask

AUTOSAVE_S = 5.0
"""Label Studio's editor saves a draft at most this long after a change."""
WAIT_S = AUTOSAVE_S + 2.0
"""How long a gesture waits for the draft that contains it."""
FRESH_S = 3 * AUTOSAVE_S
"""A mask displayed longer ago is in a draft, if it is anywhere."""
POLL_S = 0.4
MOST_WAITING = 8
"""Maximum number of gestures that wait for a draft; further ones are answered without."""
MOST_MASKS = 200
"""Masks that one gesture may be on: the last ones of the annotation."""
MOST_PIXELS = 2**30
"""Pixels that are decoded for one gesture, of the latest masks first; those decoded before do not count."""
CACHE_BYTES = 96 * 2**20
"""Of decoded masks: a hundred of 6 megapixels, as wide and high as the image."""
_WORK: dict[Kind, int] = {"brush": 1, "bitmask": 4, "polygon": 1, "rectangle": 1}
"""Work of decoding a pixel, relative to a brush mask."""
_PIXELS_PER_BYTE = 16
"""Work of a polygon's bytes and crossings, see `size_of`."""

logger = logging.getLogger(__name__)


class DraftSource(Protocol):
    """The part of `LabelStudioClient` that is used here."""

    def drafts(self, task_id: int, timeout_s: float) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class AnnotationMasks:
    """The masks of one annotation, as far as they are known."""

    annotator: str
    """Label Studio's user ID; empty if unknown."""
    draft: str
    """`Task.draft_version`; empty without a draft."""
    certain: Sequence[VisibleMask]
    possible: Sequence[VisibleMask] = ()
    """Masks that only the next draft can confirm."""
    assumed: Sequence[VisibleMask] = ()
    """Those of them that count if there is no such draft."""
    results: Sequence[Mapping[str, Any]] | None = None
    """Results of the annotation's draft; None if that is not known."""

    def needs_draft(self, gesture: Interaction) -> bool:
        """Whether the mask that a gesture is on has yet to be confirmed."""
        if not self.possible:
            return False
        under = mask_under(gesture, [*self.certain, *self.possible])
        return under is not None and any(under is mask for mask in self.possible)

    def unconfirmed(self) -> AnnotationMasks:
        """What remains if no draft confirms the possible masks."""
        known = {mask.region_id: mask for mask in (*self.certain, *self.assumed)}
        return replace(self, certain=list(known.values()), possible=(), assumed=())


@dataclass
class Room:
    """What is left to read for one gesture, of all annotations that it may be in."""

    masks: int = field(default_factory=lambda: MOST_MASKS)
    pixels: int = field(default_factory=lambda: MOST_PIXELS)


class MaskReader:
    """Decodes the masks of drafts; those of the last requests are kept. Thread-safe."""

    def __init__(self, cache_bytes: int = CACHE_BYTES) -> None:
        self._known: LRUCache[str, PackedMask] = LRUCache(cache_bytes, lambda mask: mask.size_bytes)
        self._lock = Lock()

    def masks(self, results: object, config: LabelingConfig, room: Room | None = None) -> list[VisibleMask]:
        """The masks of an annotation, a draft or a prediction, by object; unreadable ones are left out."""
        room = room or Room()
        regions = _regions(results, config)[-room.masks :] if room.masks else []
        room.masks -= len(regions)
        texts = region_texts({"result": results}, config) if regions else {}
        makers = {str(region.get("id")): str(region.get("from_name")) for region in reversed(regions)}
        found = {}
        for region in reversed(regions):
            region_id = str(region.get("id"))
            kind = config.controls[str(region.get("from_name"))].kind
            pixels, decoded_px = self._pixels(region, kind, room.pixels)
            room.pixels -= decoded_px
            if pixels is not None and pixels.area_px and region_id not in found:
                phrase, label = texts.get(region_id, (None, None))
                found[region_id] = VisibleMask(region_id, phrase or "", label, pixels, makers[region_id])
        return join_parts(list(reversed(found.values())))

    def _pixels(self, region: Mapping[str, Any], kind: Kind, left_px: int) -> tuple[PackedMask | None, int]:
        """A mask, and the number of pixels that were decoded for it, or as much other work."""
        work_px = 0
        try:
            height, width = original_hw(region)
            key = f"{kind} {height} {width} {_digest(region['value'], kind)}"
            with self._lock:
                known = self._known.get(key)
            if known is not None:
                return known, 0
            work_px = _WORK[kind] * height * width
            if kind == "polygon":
                work_px += _PIXELS_PER_BYTE * size_of(region["value"], kind, height, width)
            if work_px > left_px:
                return None, 0
            mask = PackedMask.pack(value_to_runs(region["value"], kind, height, width).to_mask())
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            logger.info("a mask of a draft is not readable: %s", error)
            return None, max(work_px, 0)
        with self._lock:
            if mask.size_bytes <= self._known.maxsize:
                self._known[key] = mask
        return mask, work_px


class AnnotationFinder:
    """Finds the annotation of a gesture.

    Args:
        source: Label Studio's API.
        wait_s: See WAIT_S.
    """

    def __init__(self, source: DraftSource, wait_s: float = WAIT_S) -> None:
        self._source = source
        self._wait_s = wait_s
        self._reader = MaskReader()
        self._waiting = BoundedSemaphore(MOST_WAITING)

    def find(
        self,
        task: Task,
        shown: Sequence[DisplayedMask],
        gestures: Sequence[Interaction],
        config: LabelingConfig,
    ) -> AnnotationMasks:
        """The annotation as far as the request and the displayed masks tell."""
        own = _draft_with(task.drafts, gestures)
        if own is not None:
            return self._of_draft(own, shown, config)
        if not task.drafts:
            return AnnotationMasks("", "", (), self._without_draft(task, shown, config))
        return self._with_drafts(task, shown, config)

    def confirmed(
        self,
        view: AnnotationMasks,
        task: Task,
        shown: Sequence[DisplayedMask],
        gestures: Sequence[Interaction],
        config: LabelingConfig,
        caller: Caller,
    ) -> AnnotationMasks:
        """Waits for the draft that contains one of the gestures; without it, the masks that are assumed."""
        draft = self._wait_for_draft(task.task_id, lambda drafts: _draft_with(drafts, gestures), caller)
        return view.unconfirmed() if draft is None else self._of_draft(draft, shown, config)

    def draft_with_prompt(
        self, task: Task, prompt: Mapping[str, Any], caller: Caller
    ) -> Mapping[str, Any] | None:
        """Waits for the draft with this content of the prompt box; None if there is none in time."""

        def has_prompt(draft: Mapping[str, Any]) -> bool:
            return any(
                (result.get("id"), result.get("value")) == (prompt.get("id"), prompt.get("value"))
                for result in _results(draft)
            )

        def choose(drafts: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
            return next(filter(has_prompt, drafts), None)

        return self._wait_for_draft(task.task_id, choose, caller)

    def _of_draft(
        self, draft: Mapping[str, Any], shown: Sequence[DisplayedMask], config: LabelingConfig
    ) -> AnnotationMasks:
        annotator, version = annotator_of(draft), draft_version_of(draft)
        masks = self._reader.masks(draft.get("result"), config)
        newer = _displayed_since(shown, annotator, version)
        certain = [_newest(mask, newer) for mask in masks]
        return AnnotationMasks(annotator, version, certain, results=_results(draft))

    def _with_drafts(
        self, task: Task, shown: Sequence[DisplayedMask], config: LabelingConfig
    ) -> AnnotationMasks:
        annotations = {str(draft.get("annotation") or f"draft {draft.get('id')}") for draft in task.drafts}
        saved = [
            annotation
            for annotation in task.annotations
            if _user_id(annotation.get("completed_by")) == task.annotator
            and str(annotation.get("id")) not in annotations
        ]
        if len(task.drafts) > 1 or saved:  # several annotations of this annotator: which is open?
            several = self._all_masks([*saved, *task.drafts], config)
            only = self._of_draft(task.drafts[0], shown, config) if len(task.drafts) == 1 else None
            assumed = only.certain if only else ()
            return AnnotationMasks(task.annotator, task.draft_version, (), several, assumed)
        view = self._of_draft(task.drafts[0], shown, config)
        drafted = {mask.region_id for mask in view.certain}
        since = _displayed_since(shown, view.annotator, view.draft)
        fresh = {**_fresh(shown, ("", view.annotator)), **since}
        possible = [mask.visible() for key, mask in fresh.items() if key not in drafted]
        assumed = [mask for mask in possible if mask.region_id in since]
        missed = [
            mask
            for mask in view.certain
            if mask.region_id not in since and _may_lack(fresh.get(mask.region_id), mask)
        ]
        certain = [mask for mask in view.certain if mask not in missed]
        return replace(view, certain=certain, possible=[*possible, *missed], assumed=[*assumed, *missed])

    def _without_draft(
        self, task: Task, shown: Sequence[DisplayedMask], config: LabelingConfig
    ) -> list[VisibleMask]:
        """An annotation without a draft: new, saved, or made from a prediction, and not changed since."""
        fresh = [mask.visible() for mask in _fresh(shown, ("",)).values()]
        return fresh + self._all_masks([*task.annotations, *task.predictions], config)

    def _all_masks(
        self, annotations: Iterable[Mapping[str, Any]], config: LabelingConfig
    ) -> list[VisibleMask]:
        room = Room()
        return [
            mask
            for annotation in annotations
            for mask in self._reader.masks(annotation.get("result"), config, room)
        ]

    def _wait_for_draft(
        self,
        task_id: str,
        choose: Callable[[Iterable[Mapping[str, Any]]], Mapping[str, Any] | None],
        caller: Caller,
    ) -> Mapping[str, Any] | None:
        if not task_id.isdecimal() or not self._waiting.acquire(blocking=False):
            return None
        try:
            until_s = time.monotonic() + min(self._wait_s, caller.left_s / 2)
            while (left_s := until_s - time.monotonic()) > 0:
                draft = choose(self._source.drafts(int(task_id), timeout_s=left_s))
                if draft is not None:
                    return draft
                time.sleep(min(POLL_S, max(until_s - time.monotonic(), 0)))
        except BackendError as error:
            logger.info("task %s: Label Studio does not give its drafts: %s", task_id, error)
        finally:
            self._waiting.release()
        return None


def _draft_with(
    drafts: Iterable[Mapping[str, Any]], gestures: Sequence[Interaction]
) -> Mapping[str, Any] | None:
    """The draft that contains one of the gestures, if any."""
    ids = {gesture.gesture_id for gesture in gestures}
    return next(
        (draft for draft in drafts if any(str(result.get("id")) in ids for result in _results(draft))), None
    )


def _results(draft: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    results = draft.get("result")
    return [result for result in results if isinstance(result, Mapping)] if isinstance(results, list) else []


def _regions(results: object, config: LabelingConfig) -> list[Mapping[str, Any]]:
    return [result for result in _results({"result": results}) if is_region(result, config)]


def _digest(value: Mapping[str, Any], kind: Kind) -> str:
    content = value[SHAPE_FIELD[kind]]
    if kind == "brush":
        if not isinstance(content, list):  # of a number, `bytes` would make as many zeros
            raise ValueError("brush RLE is not a list of numbers 0..255")
        data = bytes(content)
    elif kind == "bitmask":
        data = str(content).encode()
    else:
        shape = {name: value.get(name) for name in ("points", "x", "y", "width", "height", "rotation")}
        data = json.dumps(shape).encode()
    return hashlib.sha256(data).hexdigest()


def _displayed_since(shown: Sequence[DisplayedMask], annotator: str, draft: str) -> dict[str, DisplayedMask]:
    """Masks displayed to an annotator with this draft: it has not been saved since."""
    return {
        mask.region_id: mask
        for mask in shown
        if annotator and draft and (mask.annotator, mask.draft) == (annotator, draft)
    }


def _fresh(shown: Sequence[DisplayedMask], annotators: Sequence[str]) -> dict[str, DisplayedMask]:
    """Masks displayed so recently that the draft with them may not have been saved."""
    since_s = time.time() - FRESH_S
    return {
        mask.region_id: mask for mask in shown if mask.annotator in annotators and mask.shown_s >= since_s
    }


def _may_lack(shown: DisplayedMask | None, drafted: VisibleMask) -> bool:
    """Whether a draft has a mask as it was before the last answer: it may have been saved before that."""
    if shown is None or not shown.current or not shown.before:
        return False
    return bool(np.array_equal(coco_rle_to_mask(shown.before), drafted.pixels.unpack()))


def _newest(mask: VisibleMask, newer: Mapping[str, DisplayedMask]) -> VisibleMask:
    """A mask of a draft, as corrected since the draft was saved."""
    shown = newer.get(mask.region_id)
    return mask if shown is None else replace(mask, pixels=PackedMask.pack(shown.mask))


def _user_id(completed_by: object) -> str:
    """Label Studio writes the ID, or in some places an object with an ID."""
    return str(completed_by.get("id", "")) if isinstance(completed_by, Mapping) else str(completed_by or "")
