"""The gestures of one request, each applied to its mask.

With Auto-Accept off, a request repeats the gestures that have not been accepted, in their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from backend.assistant import click_rules
from backend.assistant.annotation_masks import AnnotationMasks
from backend.assistant.click_rules import Segment
from backend.labelstudio.interactions import Interaction
from backend.labelstudio.prompt_text import phrase_key
from backend.state.displayed_masks import NEAR, DisplayedMask, VisibleMask, distance, mask_under
from sspsam import mask_to_coco_rle
from sspsam.images.masks import BoolMask

NOT_CHANGED = "the mask was not changed: use the eraser, or the brush for a missing part"
NOTHING_THERE = "no object found there: click elsewhere, or draw a box"
NOTHING_TO_REMOVE = "there is no mask to remove a part of: click on a mask"


@dataclass
class Work:
    """A mask, and the gestures of the request that apply to it."""

    target: DisplayedMask
    """Before these gestures; its `rle` is empty for a new object."""
    mask: BoolMask | None
    """After those that were applied so far; None if there is nothing yet."""
    gestures: list[Interaction] = field(default_factory=list)

    @property
    def is_new(self) -> bool:
        """Whether the mask is a new object."""
        return not self.target.rle

    def has(self, click: Interaction) -> bool:
        """Whether a click is on the mask."""
        return self.mask is not None and click_rules.is_on(click, self.mask)

    def distance(self, click: Interaction) -> float:
        """Distance to a click, in fractions of the image's longer side."""
        return math.inf if self.mask is None else distance(click, self.mask)


class Series:
    """Applies the gestures of one request, in their order.

    Args:
        view: The annotation; replaced by a confirmed one where that matters.
        shown: Displayed masks of the task.
        confirm: Confirms the annotation (`AnnotationFinder.confirmed`).
        segment: Runs the model.
        new_id: Names the region that a gesture creates.
    """

    def __init__(
        self,
        view: AnnotationMasks,
        shown: Sequence[DisplayedMask],
        confirm: Callable[[], AnnotationMasks],
        segment: Segment,
        new_id: Callable[[Interaction], str],
    ) -> None:
        self.view = view
        self._shown = shown
        self._confirm = confirm
        self._segment = segment
        self._new_id = new_id
        self._order: dict[str, int] = {}
        self.works: dict[str, Work] = {}
        self.complaint = ""
        """Why the last gesture changed nothing; empty if it did."""
        self.last: Work | None = None
        """The mask of the last gesture that was applied now."""

    def apply(self, gestures: Sequence[Interaction]) -> None:
        self._order = {gesture.gesture_id: place for place, gesture in enumerate(gestures)}
        begun = self._resume(gestures)
        done = {gesture.gesture_id for work in self.works.values() for gesture in work.gestures}
        for gesture in gestures:
            if gesture.gesture_id not in done:
                self._apply_one(gesture, begun.get(gesture.gesture_id) or self._work_for(gesture))

    def finished(self) -> list[Work]:
        """The masks that the gestures have created or changed, in the order of their first gestures."""
        works = [work for work in self.works.values() if work.gestures]
        return sorted(works, key=lambda work: self._order[work.gestures[0].gesture_id])

    def _resume(self, gestures: Sequence[Interaction]) -> dict[str, Work]:
        """Continues the masks of earlier requests of the series.

        A mask whose gestures have not changed needs no model; otherwise they are applied again.

        Returns:
            Gesture ID -> the mask that it was applied to.
        """
        begun: dict[str, Work] = {}
        for mask in self._shown:
            repeated = [gesture for gesture in gestures if mask.has_gesture_of([gesture])]
            if not repeated:
                continue
            target = replace(mask, rle=mask.before, current=())
            work = Work(target, target.mask if target.rle else None)
            if tuple(repeated) == mask.current:
                work.mask, work.gestures = mask.mask, repeated
            self.works[mask.region_id] = work
            begun |= dict.fromkeys((gesture.gesture_id for gesture in repeated), work)
        return begun

    def _apply_one(self, gesture: Interaction, work: Work | None) -> None:
        self.last = work
        if work is None:
            self.complaint = NOTHING_TO_REMOVE
            return
        earlier = [*work.target.settled, *work.gestures]
        siblings = self._siblings(work)
        phrase = "" if siblings else work.target.phrase  # the phrase would find the other objects as well
        state = click_rules.State(work.mask, earlier, phrase, work.target.from_clicks)
        mask = click_rules.apply(gesture, state, self._segment)
        if mask is not None and siblings:
            mask = _without_siblings(mask, work, siblings, [*earlier, gesture])
        if mask is None:
            self.complaint = NOTHING_THERE if work.mask is None else NOT_CHANGED
            return
        self.complaint = ""
        work.mask = mask
        work.gestures.append(gesture)
        self.works[work.target.region_id] = work

    def _siblings(self, work: Work) -> list[BoolMask]:
        """The masks of the other objects of a mask's phrase."""
        key = phrase_key(work.target.phrase)
        if not key:
            return []
        siblings = []
        for visible in self.view.certain:
            if visible.region_id == work.target.region_id or phrase_key(visible.phrase) != key:
                continue
            changed = self.works.get(visible.region_id)
            mask = changed.mask if changed is not None else None
            siblings.append(visible.pixels.unpack() if mask is None else mask)
        return siblings

    def _work_for(self, gesture: Interaction) -> Work | None:
        """The mask that a new gesture applies to; None if it can apply to none."""
        is_click = gesture.kind == "click"
        series = [work for work in self.works.values() if work.gestures] if is_click else []
        on = next((work for work in series if work.has(gesture)), None)
        if on is not None:
            return on
        under = self._under(gesture)
        if under is not None:
            return self.works.get(under.region_id) or self._work_on(under)
        near = min(series, key=lambda work: work.distance(gesture), default=None)
        if near is not None and near.distance(gesture) <= NEAR:
            return near
        if is_click and not gesture.positive:
            return None
        new = DisplayedMask(self._new_id(gesture), "", {}, gesture.label, from_clicks=True)
        return Work(new, None)

    def _under(self, gesture: Interaction) -> VisibleMask | None:
        """The mask of the annotation that a gesture is on; a second box is not about a mask of the series."""
        if self.view.needs_draft(gesture):
            self.view = self._confirm()
        masks = self.view.certain
        if gesture.kind == "box":
            masks = [mask for mask in masks if mask.region_id not in self.works]
        return mask_under(gesture, masks)

    def _work_on(self, visible: VisibleMask) -> Work:
        mask = visible.pixels.unpack()
        rle = mask_to_coco_rle(mask)
        known = next((shown for shown in self._shown if self._is_same(shown, visible)), None)
        earlier = () if known is None else known.settled + known.current
        target = DisplayedMask(
            visible.region_id,
            visible.phrase,
            rle,
            visible.label,
            settled=tuple(gesture for gesture in earlier if click_rules.is_obeyed(gesture, mask)),
            from_clicks=known is not None and known.from_clicks and known.rle == rle,
            control=visible.control,
        )
        return Work(target, mask)

    def _is_same(self, shown: DisplayedMask, visible: VisibleMask) -> bool:
        return (shown.region_id, shown.annotator) == (visible.region_id, self.view.annotator)


def _without_siblings(
    mask: BoolMask, work: Work, siblings: Sequence[BoolMask], gestures: Sequence[Interaction]
) -> BoolMask:
    """A changed mask without what it has taken from the other objects, as far as the gestures allow."""
    nothing = np.zeros_like(mask)  # also for those of an image of another size
    own, *others = (
        each if each is not None and each.shape == mask.shape else nothing for each in (work.mask, *siblings)
    )
    apart: BoolMask = mask & (own | ~np.any(others, axis=0))
    obeys = apart.any() and all(click_rules.is_obeyed(gesture, apart) for gesture in gestures)
    return apart if obeys else mask
