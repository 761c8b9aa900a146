"""Colours of masks, so that neighbours differ. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from backend.labelstudio.predictions import ProposedRegion, colour_by_id
from backend.state.displayed_masks import DisplayedMask


def with_colours(
    regions: Iterable[ProposedRegion], shown: Iterable[DisplayedMask], count: int, annotator: str = ""
) -> list[ProposedRegion]:
    """Gives each region without a colour the one it was displayed in; a new region gets the first of those
    that the annotator's masks have least often. Masks of other annotators, who are to stay unknown, do not
    count.

    Args:
        regions: New answers.
        shown: Masks displayed on the task.
        count: Number of the form's colours; 0 for a form without a place for masks.
        annotator: Label Studio's user ID; empty if unknown, as for predictions, which all annotators see.
    """
    if not count:
        return list(regions)
    colours = {
        mask.region_id: (colour_by_id(mask.region_id) if mask.colour is None else mask.colour) % count
        for mask in shown
        if mask.annotator in ("", annotator)
    }
    used = Counter(colours.values())
    coloured = []
    for region in regions:
        colour = region.colour
        if colour is None:
            colour = colours.get(region.region_id)
        if colour is None:
            colour = min(range(count), key=used.__getitem__)
        if region.region_id not in colours:
            colours[region.region_id] = colour
            used[colour] += 1
        coloured.append(replace(region, colour=colour))
    return coloured
