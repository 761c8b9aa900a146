"""Rules that reword a template phrase without changing what it refers to.

A rule is a pattern over the phrase's skeleton, in which each name is one private-use character, and the
wordings that may replace it. `<N>` in a pattern and `{n}` in a wording is the subject, `<A>` and `{a}` what
it is related to, `{ns}` the plural of the subject.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

NAME = "[\ue000-\uf8ff]"
_OTHER = f"(?:(?:the |a |an )?{NAME}(?: and (?:the )?{NAME})?|the two {NAME})"

Rule = tuple[str, tuple[str, ...]]
"""A pattern's text and the wordings."""


def _rule(pattern: str, *wordings: str) -> Rule:
    marked = pattern.replace("<N>", f"(?P<n>{NAME})").replace("<A>", f"(?P<a>{_OTHER})")
    return f"^{marked}$", wordings


_PICTURE = ("picture", "image", "photo", "scene")


def _across(side: str) -> Sequence[Rule]:
    return (
        _rule(
            f"(?:<N> (?:on|at) the {side}(?: side)?|{side} (?P<n2>{NAME}))",
            f"{{n}} on the {side}", f"{{n}} to the {side}", f"{{n}} on the {side} hand side",
            f"{{n}} on the {side}-hand side", f"{{n}} at the {side} side", f"{{n}} on your {side}",
            f"{{n}} to your {side}", f"{{n}} over on the {side}", f"{{n}} off to the {side}",
            f"{side} hand {{n}}", f"{side}-hand {{n}}", f"{side} side {{n}}", f"{{n}} {side}",
            f"{{n}} in the {side} half", f"{{n}} in the {side} half of the picture",
            f"{{n}} on the {side} side of the picture", f"{{n}} on the {side} of the image",
            f"{{n}} towards the {side}", f"{{n}} on {side}", f"{{n}} in the {side} part",
            f"{side}-side {{n}}",
            f"{{n}} that is on the {side}", f"{{n}} which is on the {side} side",
            f"{{n}} thats on the {side}",
            f"{{n}} on the {side} part of the image", f"{{n}} {side} side", f"{{n}}, {side}",
            f"{{n}}, the one on the {side}", f"{{n}} over to the {side}", f"{{n}} located on the {side}",
            f"on the {side} the {{n}}", f"{{n}} at {side}",
        ),
        _rule(
            f"(?:{side}most <N>|(?P<n2>{NAME}) furthest to the {side}|far {side} (?P<n3>{NAME}))",
            f"{side}-most {{n}}", f"{side} most {{n}}", f"{{n}} farthest {side}", f"{{n}} furthest {side}",
            f"{{n}} all the way to the {side}", f"{{n}} all the way on the {side}",
            f"{{n}} on the far {side}",
            f"{{n}} at the far {side}", f"most {side} {{n}}", f"{{n}} that is furthest to the {side}",
            f"{{n}} closest to the {side} edge", f"{{n}} nearest the {side} edge", f"far-{side} {{n}}",
            f"{{n}} farthest to the {side}", f"{{n}} that is farthest to the {side}",
            f"{{n}} most to the {side}",
            f"very {side} {{n}}", f"{{n}} nearest to the {side} side",
            f"{{n}} which is the {side}most", f"{{n}} that is {side}most", f"{side}most one of the {{ns}}",
            f"{{n}} the furthest {side}",
        ),
    )  # fmt: skip


def _upright(side: str, half: str, up: str, most: Sequence[str]) -> Sequence[Rule]:
    level = {"top": "upper", "bottom": "lower"}[side]
    return (
        _rule(
            f"(?:<N> at the {side}|(?P<n2>{NAME}) in the {level} part|(?P<n3>{NAME}) on (?:the )?{side}"
            f"|{side} (?P<n4>{NAME}))",
            f"{{n}} at the {side} of the picture", f"{{n}} {up}", f"{{n}} near the {side}", f"{level} {{n}}",
            f"{{n}} in the {level} half", f"{{n}} in the {half} half of the picture",
            f"{{n}} at the {side} of the image",
            f"{{n}} towards the {side}", f"{{n}} at {side}", f"{{n}} that is at the {side}",
            f"{{n}} which is at the {side}", f"{{n}} thats at the {side}", f"{{n}} {side}", f"{{n}}, {side}",
            f"{{n}}, the one at the {side}", f"{side} side {{n}}", f"{{n}} on the {side} side",
            f"{{n}} in the {side} part of the picture", f"{{n}} located at the {side}", f"{side} half {{n}}",
            f"{{n}} in the {side}", f"at the {side} the {{n}}",
        ),
        _rule(
            "(?:" + "|".join(f"{word} (?P<n{i}>{NAME})" for i, word in enumerate(most, 2)) + ""
            + (f"|(?P<n9>{NAME}) furthest down" if side == "bottom" else "") + ")",
            f"{side}-most {{n}}", f"{side} most {{n}}", f"{{n}} at the very {side}", f"{{n}} furthest {up}",
            f"{level}-most {{n}}", f"{{n}} nearest the {side} edge", f"{{n}} closest to the {side}",
            f"{{n}} closest to the {side} edge", f"{{n}} that is {most[1]}", f"{{n}} which is the {most[1]}",
            f"very {side} {{n}}", f"{most[1]} one of the {{ns}}", f"{{n}} all the way at the {side}",
            f"{{n}} that is furthest {up}",
            f"{most[1]} up {{n}}" if side == "top" else f"{most[1]} down {{n}}",
            f"most {level} {{n}}",
        ),
    )  # fmt: skip


def _corner(rows: str, columns: str) -> Rule:
    level = {"top": "upper", "bottom": "lower"}[rows]
    return _rule(
        f"(?:<N> (?:at|in) the (?:{rows}|{level}) {columns}|{rows} {columns} (?P<n2>{NAME}))",
        f"{{n}} in the {rows} {columns} corner", f"{{n}} in the {rows}-{columns}",
        f"{rows}-{columns} {{n}}", f"{level}-{columns} {{n}}", f"{level} {columns} {{n}}",
        f"{{n}} in the {columns} {rows} corner", f"{{n}} {rows} {columns}", f"{{n}} {level} {columns}",
        f"{{n}} in the {level} {columns} hand corner", f"{{n}} at the {rows} on the {columns}",
        f"{{n}} at the {rows}-{columns}", f"{{n}} in the {rows}-{columns} corner", f"{{n}}, {rows} {columns}",
        f"{{n}} that is in the {rows} {columns}", f"{{n}} which is at the {rows} {columns}",
        f"{{n}} on the {rows} {columns}", f"{{n}} in the {level} {columns} corner of the picture",
        f"{{n}} to the {rows} {columns}", f"{{n}} in the {level}-{columns} corner", f"{columns} {rows} {{n}}",
        f"{{n}} {columns} {rows}", f"{rows} {columns} corner {{n}}", f"{{n}} towards the {rows} {columns}",
    )  # fmt: skip


_CLAUSE = (
    "",
    "",
    "",
    "that is ",
    "which is ",
    "that's ",
    "located ",
    "placed ",
    "sitting ",
    "standing ",
    "thats ",
)


def _relation(pattern: str, *wordings: str) -> Rule:
    clauses = [f"{{n}} {clause}{wording} {{a}}" for wording in wordings for clause in _CLAUSE]
    return _rule(f"<N> (?:{pattern}) <A>", *clauses)


def _size(pattern: str, most: Sequence[str], more: Sequence[str], plain: Sequence[str]) -> Sequence[Rule]:
    return (
        _rule(
            f"(?:{'|'.join(most)}) <N>",
            *(f"{word} {{n}}" for word in most), *(f"{{n}} that is {word}" for word in most),
            *(f"{{n}} which is the {word}" for word in most), *(f"{word} of the {{ns}}" for word in most),
            *(f"{word} one of the {{ns}}" for word in most), *(f"{word} {{n}} of all" for word in most),
            *(f"{word}-looking {{n}}" for word in most), *(f"very {word} {{n}}" for word in most[:2]),
            *(f"{{n}}, the {word} one" for word in most), *(f"{word} sized {{n}}" for word in most),
        ),
        _rule(
            f"(?:{'|'.join(more)}) <N>",
            *(f"{word} {{n}}" for word in more), *(f"{{n}} that is {word}" for word in more),
            *(f"{{n}} which is {word}" for word in more), *(f"{word} one of the {{ns}}" for word in more),
            *(f"{{n}}, the {word} one" for word in more), *(f"{word} {{n}} of the two" for word in more),
        ),
        _rule(
            f"(?:{'|'.join(more)}) of the two <N>",
            *(f"{word} of the two {{n}}" for word in more),
            *(f"{word} one of the two {{n}}" for word in more),
            *(f"{word} out of the two {{n}}" for word in more), *(f"{word} of both {{n}}" for word in more),
            *(f"{word} one of both {{n}}" for word in more), *(f"{word} of the 2 {{n}}" for word in more),
        ),
        _rule(
            f"(?:{'|'.join(pattern.split('|'))}) <N>",
            *(f"{word} {{n}}" for word in plain), *(f"{{n}} that is {word}" for word in plain[:4]),
            *(f"{{n}} which is {word}" for word in plain[:4]), *(f"very {word} {{n}}" for word in plain[:4]),
            *(f"{word} sized {{n}}" for word in plain[:3]), *(f"really {word} {{n}}" for word in plain[:3]),
        ),
    )  # fmt: skip


_RULES: tuple[Rule, ...] = (
    *_across("left"),
    *_across("right"),
    *_upright("top", "top", "up", ("topmost", "highest", "uppermost")),
    *_upright("bottom", "bottom", "down", ("bottommost", "lowest")),
    *(_corner(rows, columns) for rows in ("top", "bottom") for columns in ("left", "right")),
    _rule(
        "<N> in the (?:middle|center|centre)",
        "{n} in the middle of the picture", "center {n}", "centre {n}", "central {n}", "{n} at the center",
        "{n} in the very middle", "{n} at the centre of the image", "{n} in the center of the image",
        "{n} that is in the middle", "{n} which is in the centre", "{n} in the central part", "centered {n}",
        "{n}, in the middle", "{n} in the midle", "{n} around the middle", "{n} located in the center",
    ),
    *(
        _rule(f"<N> that is {colour}|{colour} (?P<n2>{NAME})", *(
            wording.replace("@", shade)
            for shade in ((colour, "gray") if colour == "grey" else ("grey", colour) if colour == "gray"
                          else (colour,))
            for wording in ("@ colored {n}", "@-coloured {n}", "@ coloured {n}", "{n} in @", "{n} which is @",
                            "{n} that's @", "{n} thats @", "{n} with @ color", "{n} of @ colour", "@ {n}",
                            "{n} (@)", "{n}, the @ one", "{n} that is @", "@ one of the {ns}",
                            "@-colored {n}")
        ))
        for colour in ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "grey",
                       "gray", "black")
    ),
    *_size("big|large|huge", ("biggest", "largest"), ("bigger", "larger"),
           ("big", "large", "huge", "giant", "enormous", "massive", "great big", "gigantic")),
    *_size("small|little|tiny", ("smallest", "tiniest", "littlest"), ("smaller", "littler", "tinier"),
           ("small", "little", "tiny", "mini", "miniature", "wee", "teeny", "teeny tiny")),
    _relation("(?:to the )?left of", "left of", "to the left of", "on the left of", "on the left side of",
              "on the left hand side of", "at the left of", "left from"),
    _relation("(?:to the )?right of", "right of", "to the right of", "on the right of",
    "on the right side of",
              "on the right hand side of", "at the right of", "right from"),
    _relation("above|over", "above", "over", "higher than", "up above", "higher up than", "over the top of"),
    _relation("below|under|beneath", "below", "under", "beneath", "underneath", "lower than", "down below",
              "lower down than"),
    _relation("next to|beside|near|close to|by", "next to", "beside", "near", "close to", "by", "right by",
              "adjacent to", "alongside", "near to", "nearby", "close by", "just next to", "right beside",
              "in the vicinity of", "not far from"),
    _relation("nearest to|closest to", "nearest to", "closest to", "nearest", "the closest to",
    "most close to"),
    _rule("<N> (?:that is not next to|not near|away from) <A>",
          "{n} that isn't next to {a}", "{n} far from {a}", "{n} far away from {a}", "{n} not next to {a}",
          "{n} not beside {a}", "{n} which is not near {a}", "{n} that isn't near {a}",
          "{n} thats not near {a}",
          "{n} which isn't close to {a}", "{n} not close to {a}", "{n} away from {a}",
          "{n} that is not by {a}"),
    _relation("(?:in )?between", "between", "in between", "in-between", "inbetween", "right between"),
)  # fmt: skip
RULES = tuple((re.compile(pattern), wordings) for pattern, wordings in _RULES)

_ORDINALS = {"1st": "first", "2nd": "second", "3rd": "third", "4th": "fourth", "5th": "fifth"}
_RANKS: Mapping[str, tuple[str, str, str]] = {
    written: (short, word, str(rank))
    for rank, (short, word) in enumerate(_ORDINALS.items(), 1)
    for written in (short, word)
}
ORDINAL = re.compile(
    f"^(?P<rank>{'|'.join(_RANKS)}) (?P<n>{NAME})(?: from (?:the )?(?P<side>left|right|top|bottom))?$"
)
NUMBERS = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8"}
SEVERAL = re.compile(
    f"^(?P<all>all (?:the )?|every |each |both |the |)(?P<number>(?:{'|'.join(NUMBERS)}) |)(?P<n>{NAME})"
    f"(?P<rest>.*)$"
)
PAIR = re.compile(f"^(?:the )?(?P<n>{NAME}) and (?:the )?(?P<m>{NAME})$")


def ordinals(match: re.Match[str]) -> tuple[str, ...]:
    """Wordings of "second N", or of "second N from the left"."""
    short, word, number = _RANKS[match["rank"]]
    n, side = match["n"], match["side"]
    if side is None:
        return tuple(
            wording
            for rank in (short, word)
            for wording in (f"{rank} {n}", f"{n} number {number}", f"{rank} {n} in the row",
            f"{n} no. {number}",
                            f"{rank} one of the {{ns}}", f"number {number} {n}")
        )  # fmt: skip
    words = [
        wording
        for rank in (short, word)
        for wording in (
            f"{rank} {n} from {side}", f"{rank} {n} counting from the {side}", f"{rank} from {side} {n}",
            f"{rank} {n} starting from the {side}", f"{rank} from the {side} {n}", f"{rank}-from-{side} {n}",
            f"{n} that is {rank} from the {side}", f"{n} which is {rank} from {side}",
            f"{rank} {n} if you count from the {side}", f"{rank} one of the {{ns}} from the {side}",
            f"{n} {rank} from the {side}", f"{n} {rank} from {side}", f"{rank} {n} seen from the {side}",
            f"{n} number {number} from the {side}", f"{n} no. {number} from the {side}",
            f"number {number} {n} from {side}", f"from the {side} the {rank} {n}",
            f"{rank} {n} on from the {side}",
            f"{rank} {n} when counting from the {side}", f"{rank} {n} of the {{ns}} from the {side}",
        )
    ]  # fmt: skip
    return tuple(words)


ONE_FRAMES = (
    "where is {}?", "where is {}", "where's {}?", "wheres {}", "can you find {}", "can you find {}?",
    "could you find {}", "could you find {} please", "can you show me {}", "could you please select {}",
    "please find {}", "please mark {}", "please select {}", "please segment {}", "pls mark {}", "find {}",
    "find me {}", "show {}", "show me {}", "select {}", "pick {}", "pick out {}", "mark {}", "highlight {}",
    "segment {}", "outline {}", "get {}", "get me {}", "give me {}", "choose {}", "i am looking for {}",
    "i'm looking for {}", "im looking for {}", "looking for {}", "i want {}", "i need {}", "i would like {}",
    "i'd like {}", "do you see {}?", "can you see {}?", "look for {}", "locate {}", "point to {}",
    "point at {}",
    "point out {}", "label {}", "annotate {}", "cut out {}", "detect {}", "identify {}", "what about {}?",
    "{} please", "{}, please", "{} pls", "{} thanks", "{}?", "{}!", "{}.", "{} in the picture",
    "{} in this image", "{} here", "hey, where is {}", "ok now {}", "now {}", "next {}", "just {}", "only {}",
    "it is {}", "try {}", "how about {}", "where can i find {}?", "where do you see {}", "and {}", "also {}",
    "would you mark {}", "i mean {}", "i meant {}", "let's do {}", "we need {}", "trace {}", "draw around {}",
    "search for {}", "is there {}?", "is there {} in the picture?", "which one is {}?", "which is {}",
    "that would be {}", "tell me where {} is", "show me where {} is", "where {} is",
    "do you know where {} is",
)  # fmt: skip
"""Frames around a phrase for one object."""
SEVERAL_FRAMES = tuple(
    frame.replace(" is {}", " are {}").replace("wheres", "where are").replace("where's", "where are")
    .replace("{} is", "{} are").replace("it is", "they are").replace("is there", "are there")
    for frame in ONE_FRAMES
)  # fmt: skip
DETERMINERS = ("the", "the", "the", "the", "that", "this", "", "", "", "a", "the one", "my")
