"""Parts of one object are one; parts that were given another phrase are objects of their own."""

from __future__ import annotations

import pytest

from backend.labelstudio.regions.parts import group_parts

MAIN, SECOND, THIRD = "0123456789ab", "0123456789ab-part-2", "0123456789ab-part-3"


@pytest.mark.parametrize(
    ("region_ids", "meanings", "objects"),
    [
        ([MAIN, SECOND, THIRD], "aaa", {MAIN: (0, 1, 2)}),
        ([SECOND, MAIN], "aa", {MAIN: (1, 0)}),
        ([SECOND, THIRD], "aa", {MAIN: (0, 1)}),
        ([MAIN, SECOND], "ab", {MAIN: (0,), SECOND: (1,)}),
        ([SECOND, THIRD], "ab", {MAIN: (0,), THIRD: (1,)}),
        (["x", "y"], "aa", {"x": (0,), "y": (1,)}),
    ],
)
def test_each_object_has_an_id_of_its_own(
    region_ids: list[str], meanings: str, objects: dict[str, tuple[int, ...]]
) -> None:
    assert list(group_parts(region_ids, list(meanings))) == list(objects.items())
