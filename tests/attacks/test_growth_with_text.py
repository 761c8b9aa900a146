"""Text from others takes linear time: in every regular expression, in logs, phrases, addresses and forms."""

from __future__ import annotations

import ast
import importlib
import logging
import pkgutil
import re
import re._constants as sre  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.sax.saxutils import quoteattr

import pytest

import backend
import finetune
import sspsam
import worker
from backend.errors import BackendError
from backend.events import read_event
from backend.images.fetching import Target
from backend.labelstudio import prompt_text
from backend.labelstudio.config import LabelingConfig
from backend.logs import MESSAGE_MAX_CHARACTERS, REQUEST_LOG_FORMAT, Redacting
from backend.queries import Task, phrases_in
from sspsam import PhraseError
from sspsam.phrases import tokenize
from tests.attacks.growth import grows_faster_than_linear, seconds_of

PACKAGES = (sspsam, finetune, backend, worker)
TAILS = ("", "!")
MOST_UNITS = 12
"""Repeated texts per pattern: its literals and one character of each of its classes, then pairs of them."""
CALLS = {"compile", "search", "match", "fullmatch", "split", "findall", "finditer", "sub", "subn"}
"""Functions of `re` that compile a pattern."""
_OF_CATEGORY = {
    sre.CATEGORY_DIGIT: "1",
    sre.CATEGORY_SPACE: " ",
    sre.CATEGORY_WORD: "a",
    sre.CATEGORY_NOT_DIGIT: "a",
    sre.CATEGORY_NOT_SPACE: "a",
    sre.CATEGORY_NOT_WORD: "-",
}


def product_modules() -> Iterator[ModuleType]:
    for package in PACKAGES:
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith(("__main__", "label_studio_ml_adapter")):
                yield importlib.import_module(found.name)


def patterns_in(value: object, depth: int = 3) -> Iterator[re.Pattern[Any]]:
    """Patterns of a module's global, also in tables."""
    if isinstance(value, re.Pattern):
        yield value
    elif depth and isinstance(value, dict):
        yield from (found for entry in value.values() for found in patterns_in(entry, depth - 1))
    elif depth and isinstance(value, tuple | list):
        yield from (found for entry in value for found in patterns_in(entry, depth - 1))


def all_patterns() -> dict[str, re.Pattern[Any]]:
    found = {}
    for module in product_modules():
        for name, value in vars(module).items():
            for pattern in patterns_in(value):
                if isinstance(pattern.pattern, str):
                    found[pattern.pattern] = (f"{module.__name__}.{name}", pattern)
    return {f"{name}: {text}": pattern for text, (name, pattern) in found.items()}


PATTERNS = all_patterns()


def characters_of(parsed: Any) -> Iterator[str]:
    """The literals of a parsed pattern, joined where they are adjacent, and a character of each class."""
    run = ""
    for operator, argument in parsed:
        if operator is sre.LITERAL:
            run += chr(argument)
            continue
        if run:
            yield run
            run = ""
        yield from inside(operator, argument)
    if run:
        yield run


def inside(operator: Any, argument: Any) -> Iterator[str]:
    if operator is sre.IN:
        yield from class_characters(argument)
    elif operator in (sre.NOT_LITERAL, sre.ANY):
        yield "~"
    elif operator in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
        yield from characters_of(argument[2])
    elif operator is sre.SUBPATTERN:
        yield from characters_of(argument[3])
    elif operator is sre.BRANCH:
        yield from (text for branch in argument[1] for text in characters_of(branch))
    elif operator in (sre.ASSERT, sre.ASSERT_NOT):
        yield from characters_of(argument[1])


def class_characters(members: Any) -> Iterator[str]:
    if members[0][0] is sre.NEGATE:
        yield "~"
        return
    for operator, argument in members:
        if operator is sre.LITERAL:
            yield chr(argument)
        elif operator is sre.RANGE:
            yield chr(argument[0])
        elif operator is sre.CATEGORY:
            yield _OF_CATEGORY[argument]


def hostile_inputs(pattern: re.Pattern[str]) -> Iterator[Callable[[int], str]]:
    """Texts of n characters: parts of the pattern repeated, with a beginning and an end that fit or not."""
    parts = list(dict.fromkeys(characters_of(parser.parse(pattern.pattern, pattern.flags))))[:MOST_UNITS]
    units = [*parts, *("".join(pair) for pair in product(parts[:4], repeat=2))]
    for unit, start, end in product(dict.fromkeys(units), ("", *parts[:2]), TAILS):
        yield lambda n, unit=unit, start=start, end=end: start + unit * (n // len(unit)) + end


def substituting(pattern: re.Pattern[str], make: Callable[[int], str]) -> Callable[[int], str]:
    return lambda n: pattern.sub("", make(n))


@pytest.mark.parametrize("name", PATTERNS)
def test_no_pattern_backtracks(name: str) -> None:
    """Each is run at n, 2n and 4n, by `sub`, which begins at every position."""
    pattern = PATTERNS[name]
    slow = [
        make(20) for make in hostile_inputs(pattern) if grows_faster_than_linear(substituting(pattern, make))
    ]
    assert slow == []


@pytest.mark.slow
def test_the_scan_finds_patterns_that_backtrack() -> None:
    """The ones that were there, of quadratic and of cubic time."""
    for text in (
        r"(^|\s+)[!?]\s.*",
        r"(?i)(\b[a-z][a-z0-9+.-]*://)[^\s/@]+@",
        r"([?&][^=&\s]*(?:sign|key)[^=&\s]*=)[^&\s]+",
        r"<[^>]*>",
    ):
        pattern = re.compile(text)
        found = (grows_faster_than_linear(substituting(pattern, make), 1) for make in hostile_inputs(pattern))
        assert any(found), text


def test_every_pattern_is_a_modules_global() -> None:
    """One that is compiled in a function, or given to `re.sub` as text, would escape the scan."""
    hidden = []
    for package in PACKAGES:
        for path in Path(str(package.__file__)).parent.rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            nested = [node for top in ast.walk(tree) if isinstance(top, FUNCTIONS) for node in ast.walk(top)]
            hidden += [f"{path.name}:{node.lineno}" for node in nested if compiles_a_pattern(node)]
    assert hidden == []


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def compiles_a_pattern(node: ast.AST) -> bool:
    called = node.func if isinstance(node, ast.Call) else None
    return (
        isinstance(called, ast.Attribute)
        and isinstance(called.value, ast.Name)
        and called.value.id == "re"
        and called.attr in CALLS
    )


REDACTING = Redacting(logging.Formatter(REQUEST_LOG_FORMAT), ["planted-secret"])
TASK = {"id": 1, "data": {}}


def logged(text: str) -> str:
    """A record of a message and of an exception that both quote a text from outside."""
    try:
        raise ValueError(text)
    except ValueError:
        record = logging.LogRecord("backend", 40, __file__, 1, "GET %s", (text,), sys.exc_info())
    record.request_id = "-"
    return REDACTING.format(record)


def form(labels: str) -> str:
    return f'<View><BrushLabels name="mask" toName="image">{labels}</BrushLabels></View>'


def refused(work: Callable[[str], object], text: str) -> None:
    with suppress(BackendError, PhraseError, ValueError):
        work(text)


READERS: dict[str, Callable[[str], object]] = {
    "a record": logged,
    "redaction": REDACTING.redact,
    "a phrase": prompt_text.plain_phrase,
    "a phrase's key": prompt_text.phrase_key,
    "an entry": prompt_text.split,
    "a failure": prompt_text.has_failed,
    "several phrases": lambda text: prompt_text.distinct([text, text]),
    "phrases of a task": lambda text: phrases_in({"phrases": text, "phrase": text}),
    "the phrases of a project": lambda text: Task.parse(TASK).phrases(text),
    "tokens": lambda text: tokenize([text]),
    "an address": Target.parse,
    "a redirect": lambda text: Target.parse("http://host/").follow(text),
    "a form": LabelingConfig.parse,
    "a label": lambda text: LabelingConfig.parse(form(f"<Label value={quoteattr(text)}/>")).choice_for(text),
    "an event": lambda text: read_event(text.encode()),
}
"""What reads texts from others."""
UNITS = (
    " ", "a", "a.", ";", "?", "%3F", "key", "?key", "&key", "?key=", "://", "a://", "a@", "//", "..",
    "Basic ", "\N{EMPTY SET}", " \N{WARNING SIGN} ", ";\N{WARNING SIGN} ", "[", "{", '{"a":', "<", "<a>",
    "&amp;", "&", "\x1b", "\n", "\u00df",
    "1", "'", '"', "\\", "s ", "\u202e", "\u0130",
)  # fmt: skip
ENDS = ("", "x@", "\N{WARNING SIGN} x")


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_readers_take_linear_time(reader: str) -> None:
    read = READERS[reader]
    slow = [
        unit + end
        for unit, end in product(UNITS, ENDS)
        if grows_faster_than_linear(lambda n, unit=unit, end=end: refused(read, unit * n + end))
    ]
    assert slow == []


def test_the_attacks_that_were_found() -> None:
    """17 s, 15 s and 129 s of the interpreter, before."""
    request_line = "/" + "?" * 480 + "key" * 860
    took_s = seconds_of(lambda _: REDACTING.redact(request_line), 1)
    took_s += seconds_of(lambda _: REDACTING.redact("a." * 15_000 + ":x"), 1)
    took_s += seconds_of(lambda _: prompt_text.distinct(["a" + " " * 20_000 + "b"]), 1)
    took_s += seconds_of(lambda _: prompt_text.phrase_key("a" + "\u0315\u0316" * 20_000), 1)
    assert took_s < 0.1


def test_redaction_still_hides_secrets_between_repetitions() -> None:
    for text, hidden in {
        "?" * 50 + "a=1&key=secret&b=2": "a=1&key=***&b=2",
        "a." * 50 + "://user:se@cret@host/x": "://***@host/x",
        "https://u:secret@host?x-amz-signature=secret": "https://***@host?x-amz-signature=***",
        "?a?token=secret": "?a?token=***",
        "Authorization: Basic c2VjcmV0OnNlY3JldA==": "Authorization: *** ***",
    }.items():
        assert REDACTING.redact(text).endswith(hidden)


def test_a_long_record_loses_its_middle_and_no_secret_is_halved() -> None:
    for place in range(MESSAGE_MAX_CHARACTERS // 2 - 30, MESSAGE_MAX_CHARACTERS // 2 + 30):
        text = "x" * place + "planted-secret" + "y" * 3 * MESSAGE_MAX_CHARACTERS
        line = logged(text)
        assert len(line) < 3 * MESSAGE_MAX_CHARACTERS
        assert "plan" not in line
        assert "cret" not in line
