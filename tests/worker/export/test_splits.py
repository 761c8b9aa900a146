"""Splits by picture."""

from __future__ import annotations

from hashlib import sha256

import pytest

from backend.errors import ExportError
from worker.export.splits import parse_split

DIGESTS = [sha256(str(number).encode()).hexdigest() for number in range(4000)]


@pytest.mark.parametrize(
    ("text", "shares"), [("0.8,0.1,0.1", (0.8, 0.1, 0.1)), ("0.5,0.5", (0.5, 0.5)), ("0,0,1", (0, 0, 1))]
)
def test_the_shares_hold_on_average(text: str, shares: tuple[float, ...]) -> None:
    split = parse_split(text)
    found = [split.of(digest) for digest in DIGESTS]
    for name, share in zip(split.names, shares, strict=True):
        assert found.count(name) / len(found) == pytest.approx(share, abs=0.02 if 0 < share < 1 else 0)


def test_a_picture_stays_on_its_side_when_a_later_share_changes() -> None:
    one, other = parse_split("0.8,0.1,0.1"), parse_split("0.8,0.2")
    assert [one.of(digest) == "train" for digest in DIGESTS] == [
        other.of(digest) == "train" for digest in DIGESTS
    ]


def test_the_last_digest_has_a_split() -> None:
    assert parse_split("0.7,0.2,0.1").of("f" * 64) == "test"
    assert parse_split("0.5,0.5,0").of("f" * 64) == "val"


def test_a_word_is_the_split_of_everything() -> None:
    split = parse_split("val")
    assert (split.of("0" * 64), split.of("f" * 64), split.by_content) == ("val", "val", False)


@pytest.mark.parametrize(
    "text", ["0.8,0.1", "0.8", "1,1,-1", "a,b", "0.5,0.2,0.2,0.1", "../val", "", "nan,nan"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ExportError, match="add up to 1"):
        parse_split(text)
