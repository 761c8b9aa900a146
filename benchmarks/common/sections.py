"""Sections of docs/performance.md: each benchmark writes its own, and leaves the others as they are."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/performance.md"
PACKAGES = ("torch", "numpy", "opencv-python-headless")
INTRODUCTION = """# Performance

Each section is written by a script in benchmarks/, which it names with machine, versions and date;
`make bench` runs all of them. What counts are ratios of things measured in one run, in turn. Seconds depend
on the machine, and on what else ran on it: a section says where it did other work meanwhile.

Nothing here was measured on a GPU yet. On a machine with one, these say what the sections below cannot:
`python benchmarks/encoders.py --device cuda`, `python benchmarks/half_precision.py --device cuda`, and with
`DEVICE=cuda` and a `PRESET` with its `WEIGHTS` in the environment, `python benchmarks/batching.py`.
"""


def write_section(title: str, *paragraphs: str) -> None:
    """Prints a section, and writes it with command, machine and date, in place of the one of its title.

    Args:
        title: Of the section.
        paragraphs: Markdown, tables among them.
    """
    script = Path(sys.argv[0]).resolve().relative_to(ROOT)
    command = shlex.join(["python", str(script), *_without_file(sys.argv[1:])])
    text = "\n\n".join([f"## {title}", f"`{command}`. {machine()}", *paragraphs]) + "\n"
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else INTRODUCTION
    sections = {one.partition("\n")[0]: one for one in re.split(r"^(?=## )", page, flags=re.MULTILINE)[1:]}
    sections[f"## {title}"] = text
    whole = "\n".join([INTRODUCTION, *(one.strip() + "\n" for one in sections.values())])
    PAGE.write_text(whole, encoding="utf-8")
    print(text)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def machine() -> str:
    """Where and with what this runs, in a sentence."""
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    cores, load = os.cpu_count() or 1, os.getloadavg()[1]
    shared = f", on a machine that did other work (load average {load:.0f})" if load > 1.5 * cores else ""
    return (
        f"{_processor()}, {cores} cores, Python {platform.python_version()}, {packages}; "
        f"{datetime.now(UTC):%Y-%m-%d}{shared}."
    )


def _without_file(arguments: Sequence[str]) -> list[str]:
    """Without `--keep FILE`, which changes no figure."""
    kept = list(arguments)
    if "--keep" in kept:
        del kept[(place := kept.index("--keep")) : place + 2]
    return kept


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
