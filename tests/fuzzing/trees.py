"""Strategies: arbitrary JSON, and mutated real payloads."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**80), 2**80),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["", "/", "../../etc/passwd", "__proto__", "os.system", "\x00", "1e999", "’", "NaN", "-1"]
    ),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def places(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a tree."""
    yield above
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from places(value, (*above, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from places(value, (*above, index))


@st.composite
def changed(draw: st.DrawFn, seeds: list[Any]) -> Any:
    """A seed with up to three of its values replaced or left out."""
    tree = copy.deepcopy(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(list(places(tree)))) or (None,)
        if last is None:
            return draw(JSON)
        holder = tree
        for step in way:
            holder = holder[step]
        if draw(st.booleans()) and isinstance(holder, dict):
            del holder[last]
        else:
            holder[last] = draw(JSON)
    return tree
