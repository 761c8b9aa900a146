"""Regions of one object: a polygon has one part, so an object in several parts has a region for each.

The largest part has the object's ID, such as 0123456789ab, and the next ones 0123456789ab-part-2 and so on.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from sspsam.images.few_points import MOST_PARTS

_BEFORE_NUMBER = "-part-"
_NUMBERS = frozenset(str(number) for number in range(2, 100))
MOST_IDS = 2 * MOST_PARTS
"""Of an object's parts: some may belong to regions that have been given another phrase."""


def part_ids(object_id: str) -> Iterator[str]:
    """IDs of the parts of an object, the largest part first."""
    yield object_id
    for number in range(2, MOST_IDS + 1):
        yield f"{object_id}{_BEFORE_NUMBER}{number}"


def object_id_of(region_id: str) -> str:
    """ID of the object that a region is a part of; of others, the region's own."""
    object_id, _, number = region_id.rpartition(_BEFORE_NUMBER)
    return object_id if object_id and number in _NUMBERS else region_id


def group_parts(
    region_ids: Sequence[str], meanings: Sequence[Hashable]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Groups regions by object.

    Args:
        region_ids: IDs of the regions.
        meanings: What each stands for, such as its phrase and its label: a part that has been given another
            one is an object by itself.

    Yields:
        ID of the object, and the places of its parts, the one under the object's ID first; in the order of
        their first parts.
    """
    groups: dict[tuple[str, Hashable], list[int]] = {}
    for place, (region_id, meaning) in enumerate(zip(region_ids, meanings, strict=True)):
        groups.setdefault((object_id_of(region_id), meaning), []).append(place)
    taken = set(region_ids)
    for (object_id, _), places in groups.items():
        ordered = sorted(places, key=lambda place: region_ids[place] != object_id)
        first = region_ids[ordered[0]]
        name = first if object_id in taken else object_id
        taken.add(name)
        yield name, tuple(ordered)
