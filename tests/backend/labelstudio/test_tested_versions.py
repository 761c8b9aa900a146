"""Which versions of Label Studio are tested, and what connecting says about the others."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from werkzeug.wrappers import Response

from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.tested_versions import TESTED, version_line
from tests.backend.web_server import Web, as_json

ROOT = Path(__file__).parents[3]
PINNED = re.compile(r"label-studio==(.*)")
OLDER = re.compile(r"^OLDER_LABEL_STUDIOS := (.*)$", re.MULTILINE)


def test_the_tested_versions_are_those_that_are_installed() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    (pinned,) = (PINNED.fullmatch(requirement) for requirement in groups["label-studio"])
    older = OLDER.search((ROOT / "Makefile").read_text())

    assert pinned is not None
    assert older is not None
    assert (*older[1].split(), pinned[1]) == TESTED


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (as_json({"release": "1.16.0"}), "Label Studio 1.16.0, which `make compatibility` covers"),
        (
            as_json({"release": "1.23.2+0.gdf96d79"}),
            "Label Studio 1.23.2, which `make compatibility` covers",
        ),
        (as_json({"release": "1.99.0.dev0"}), "Label Studio 1.99.0.dev0 is untested: "),
        (as_json({"release": None}), "Label Studio does not tell its version: "),
        (Response("", 404), "Label Studio does not tell its version: "),
    ],
)
def test_connecting_says_whether_a_version_is_tested(answer: Response, expected: str) -> None:
    with Web({"/api/version/": answer}) as label_studio:
        said = version_line(LabelStudioClient(label_studio.url, "k" * 40))

    assert said.startswith(expected)
    assert said == expected or said.endswith("covers 1.13.1, 1.16.0, 1.20.0 and 1.23.2")
