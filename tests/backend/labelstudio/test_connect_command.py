"""`sspsam connect` with a project of a simulated Label Studio."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from backend.cli.commands import app as commands
from backend.errors import BackendError
from tests.backend.labelstudio.test_setup import BACKEND, KEY, OTHER_CONFIG, OneProject, label_studio
from tests.facts import untold

__all__ = ["label_studio"]


@pytest.fixture
def environment(label_studio: OneProject) -> dict[str, str]:
    return {
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": KEY,
        "PUBLIC_URL": BACKEND,
        "WEBHOOK_SECRET": "s3cret",
        "BASIC_AUTH_USER": "",
        "BASIC_AUTH_PASS": "",
    }


def test_the_command_connects_and_then_finds_nothing_missing(
    label_studio: OneProject, environment: dict[str, str]
) -> None:
    runner = CliRunner(env=environment)

    checked = runner.invoke(commands, ["connect", "--project", "3", "--check"])
    connected = runner.invoke(commands, ["connect", "--project", "3"])
    twice = runner.invoke(commands, ["connect", "--project", "3"])
    again = runner.invoke(commands, ["connect", "--project", "3", "--check"])

    assert checked.exit_code == 1
    assert untold(checked.output, BACKEND, "<BrushLabels>", '<BrushLabels name="mask"') == []
    assert "answered with" not in checked.output, "it has no place for answers"
    assert untold(again.output, "answered with", "brush") == []
    shown, done = (connected.output.index(text) for text in ("+    <BrushLabels", f"{BACKEND}/webhook"))
    assert shown < done, "the change is shown first"
    assert connected.exit_code == 0, connected.output
    assert twice.exit_code == 0
    assert "<BrushLabels" not in twice.output, "nothing changes any more"
    assert again.exit_code == 0
    assert "<BrushLabels" not in again.output


@pytest.mark.parametrize("label_studio", [OTHER_CONFIG], indirect=True)
def test_the_command_asks_before_it_changes_a_config(
    label_studio: OneProject, environment: dict[str, str]
) -> None:
    runner = CliRunner(env=environment)

    refused = runner.invoke(commands, ["connect", "--project", "3"], input="n\n")
    assert refused.exit_code == 1
    assert label_studio.project["label_config"] == OTHER_CONFIG
    assert "+  <BrushLabels" in refused.output, "shown before it is asked"

    assert runner.invoke(commands, ["connect", "--project", "3", "--yes"]).exit_code == 0
    assert "<BrushLabels" in label_studio.project["label_config"]
    assert runner.invoke(commands, ["connect", "--project", "3"]).exit_code == 0, "nothing to ask any more"


@pytest.mark.parametrize(
    ("changes", "project", "reason"),
    [
        ({"LABEL_STUDIO_URL": "http://127.0.0.1:9"}, "3", "is it running"),
        ({"LABEL_STUDIO_URL": "label-studio"}, "3", "LABEL_STUDIO_URL"),
        ({"LABEL_STUDIO_API_KEY": ""}, "3", "set LABEL_STUDIO_API_KEY"),
        ({}, "4", "nothing there"),
    ],
)
def test_the_command_says_what_is_wrong(
    environment: dict[str, str], changes: dict[str, str], project: str, reason: str
) -> None:
    result = CliRunner(env=environment | changes).invoke(commands, ["connect", "--project", project])

    assert isinstance(result.exception, BackendError), result.output
    assert reason in str(result.exception)
