"""Every claim in docs/security.md and docs/reliability.md names its tests, and they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("security.md", "reliability.md")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
WITHOUT_TESTS = ("Trust boundaries", "Soak")
"""Sections whose tables contain no claims."""


def rows(document: str) -> list[str]:
    """Rows of the tables of claims, without headings."""
    found = []
    for section in re.split(r"^## ", (ROOT / "docs" / document).read_text(), flags=re.MULTILINE)[1:]:
        if not section.startswith(WITHOUT_TESTS):
            lines = [line for line in section.splitlines() if line.startswith("| ")]
            found += [line for line in lines if not re.match(r"\| (claim|fault) \|", line)]
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_claim_names_a_test(document: str) -> None:
    claims = rows(document)
    assert len(claims) > 5
    assert [claim for claim in claims if not NAMED.search(claim.split("|")[-2])] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_named_test_exists(document: str) -> None:
    for file, name in NAMED.findall((ROOT / "docs" / document).read_text()):
        tree = ast.parse((ROOT / file).read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in names, f"{document} names {file}::{name}"
