"""Texts from outside in logs and terminals: no line is forged, and no terminal obeys."""

from __future__ import annotations

import ast
import logging
import unicodedata
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
import torch
from flask.testing import FlaskClient
from redis import Redis

import backend
import finetune
import sspsam
import worker
from backend.logs import REQUEST_LOG_FORMAT, Redacting, add_request_id
from backend.settings import Settings
from backend.web.app import create_app
from finetune.cli.commands import _print_result
from finetune.evaluation.evaluate import EvaluationResult
from sspsam import VersionStore
from sspsam.cli.output import echo
from sspsam.printable import printable
from sspsam.version_store.store import VersionCard
from tests.backend.colours import ColourPredictor
from tests.backend.editor import ask, prompt, task
from worker.cli.versions import list_versions
from worker.projects.batch_jobs import finish
from worker.projects.chunks import ChunkReport

PACKAGES = (sspsam, finetune, backend, worker)
FORGED = "FORGED"
HOSTILE = (
    f"\n2026-01-01 00:00:00,000 INFO backend {FORGED}",
    f"\r{FORGED}",
    f"\x1b[2J\x1b[1;1H{FORGED}",
    f"\x9b2J{FORGED}",
    f"\x85{FORGED}",
    f"\u2028{FORGED}",
    f"\u2029{FORGED}",
    f"\x0b{FORGED}\x0c{FORGED}\x1c{FORGED}",
    f"\u202e{FORGED}\u2066",
    f"\x07\x08\x00{FORGED}\x7f",
    f"\x1b]0;{FORGED}\x07",
    f"\x1b]8;;http://evil.example\x1b\\{FORGED}",
    f"\U000e0041{FORGED}",
)


def forged(output: str) -> list[str]:
    """Lines that begin with the hostile text, and characters that a terminal would obey."""
    lines = [line for line in output.splitlines() if line.startswith((FORGED, "2026-01-01 00:00:00,000"))]
    controls = {"Cc", "Zl", "Zp"}
    obeyed = [character for character in output if unicodedata.category(character) in controls - {"\n"}]
    return lines + [repr(character) for character in obeyed if character != "\n"]


@pytest.fixture
def log() -> Iterator[StringIO]:
    """The log of the service."""
    stream, root = StringIO(), logging.getLogger()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Redacting(logging.Formatter(REQUEST_LOG_FORMAT)))
    handler.addFilter(add_request_id)
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.mark.parametrize("text", HOSTILE)
def test_requests_forge_no_line_of_the_log(
    settings: Settings, redis_server: Redis, log: StringIO, text: str
) -> None:
    """Paths, request IDs, phrases, image values, region IDs, project titles, forms."""
    app = create_app(settings, redis_server, ColourPredictor())
    app.extensions["sspsam"].engine.start()
    client: FlaskClient = app.test_client()
    client.post(f"/webhook/{text}", json={})
    client.post("/webhook", json={"action": text, "project": {"id": 5, "title": text}})
    client.post("/webhook", json={"action": "ANNOTATION_CREATED", "annotation": {"id": text}})
    client.post("/setup", json={"project": text, "schema": f"<View>{text}", "extra_params": text})
    ask(client, prompt(f"the {text}"), one=task(image=f"http://host/{text}"))
    ask(client, prompt("the red square"), one=task(image=f"https://{text}"))
    logging.getLogger("worker").warning("region %s of annotation %d is left out", text, 7)
    try:
        raise ValueError(text)
    except ValueError:
        logging.getLogger("backend").exception("project %s", text)
    app.extensions["sspsam"].engine.stop()
    assert FORGED in log.getvalue()
    assert forged(log.getvalue()) == []


@pytest.mark.parametrize("text", HOSTILE)
def test_commands_show_what_others_wrote(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The reasons of problems have file names and phrases in them."""
    report = ChunkReport(tasks=1)
    report.problems["7"] = f"cannot read {text}"
    with pytest.raises(Exception):  # noqa: B017, PT011
        finish(report, [f"job {text}"], "done")
    echo(f"project {printable(text)} is fully connected")
    shown = "".join(capsys.readouterr())
    assert FORGED in shown
    assert forged(shown) == []


MARKUP = ("[/unopened]", "[bold]", "[link=http://evil.example]x[/link]", "[red on", "\\[x]", ":warning:")


@pytest.mark.parametrize("text", MARKUP)
def test_brackets_are_no_markup(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The first was a traceback in place of the list: reasons, labels and phrases have brackets, too."""
    store = VersionStore(tmp_path, "ssp-sam-test")
    store.publish({"shift": torch.tensor(1)}, VersionCard(reason=text), {})
    list_versions(model_dir=tmp_path, preset="ssp-sam-test")
    counts = {"samples": 1, "images": 1, "no target": 0}
    _print_result(EvaluationResult({}, counts=counts, refused={text: text}), {"data": text})
    shown = "".join(capsys.readouterr().out.split())
    assert shown.count("".join(text.split())) == 4


def test_printable_leaves_text_as_it_is() -> None:
    for text in ("the red ball", "Ünïcödé ☂ 狗 🐶", "a\\b", "שלום", "~"):
        assert printable(text) == text
    assert printable("a\nb\x1b") == "a\\nb\\x1b"


def test_commands_print_through_one_function() -> None:
    """`typer.echo` and `print` would let control characters through."""
    found = []
    for package in PACKAGES:
        for path in Path(str(package.__file__)).parent.rglob("*.py"):
            if path.parts[-2:] != ("cli", "output.py"):
                found += [
                    f"{path}:{node.lineno}" for node in ast.walk(ast.parse(path.read_text())) if prints(node)
                ]
    assert found == []


def prints(node: ast.AST) -> bool:
    called = node.func if isinstance(node, ast.Call) else None
    is_typer = isinstance(called, ast.Attribute) and called.attr in ("echo", "secho")
    return is_typer or (isinstance(called, ast.Name) and called.id == "print")
