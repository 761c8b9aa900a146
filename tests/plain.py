"""Whether values are Python's own, as JSON encoders need them, and not scalars of NumPy or torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PLAIN_TYPES = (type(None), bool, int, float, str)


def not_plain(value: Any, place: str = "value") -> list[str]:
    """Where in nested dicts, lists and tuples a value is of another type than JSON's; the type is exact.

    np.float64 is a subclass of float and np.str_ one of str, so isinstance would let them through.
    """
    if isinstance(value, Mapping):
        keys = [f"{place}: key {key!r} is {type(key).__name__}" for key in value if type(key) is not str]
        return keys + [
            found for key, inner in value.items() for found in not_plain(inner, f"{place}[{key!r}]")
        ]
    if type(value) in (list, tuple):
        return [found for i, inner in enumerate(value) for found in not_plain(inner, f"{place}[{i}]")]
    return [] if type(value) in PLAIN_TYPES else [f"{place} is {type(value).__name__}"]
