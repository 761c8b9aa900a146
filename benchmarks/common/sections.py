"""Sections of docs/performance.md: each benchmark replaces its own section only."""

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


def write_section(title: str, *paragraphs: str) -> None:
    """Prints a section and writes it to the page with command, machine and date.

    All other sections, such as the hand-written summary, stay as they are.

    Args:
        title: Heading of the section; a section with the same heading is replaced.
        paragraphs: Markdown, including tables.
    """
    script = Path(sys.argv[0]).resolve().relative_to(ROOT)
    command = shlex.join(["python", str(script), *_without_file(sys.argv[1:])])
    text = "\n\n".join([f"## {title}", f"`{command}`. {machine()}", *paragraphs]) + "\n"
    PAGE.write_text(with_section(PAGE.read_text(encoding="utf-8"), title, text), encoding="utf-8")
    print(text)


def with_section(page: str, title: str, text: str) -> str:
    """The page with one section replaced, or appended if it has none of this title."""
    introduction, *parts = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    sections = {part.partition("\n")[0]: part for part in parts}
    sections[f"## {title}"] = text
    return "\n".join(part.strip() + "\n" for part in (introduction, *sections.values()))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def machine() -> str:
    """Processor, versions and date, in one sentence."""
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    cores, load = os.cpu_count() or 1, os.getloadavg()[1]
    shared = f", on a machine under other load (load average {load:.0f})" if load > 1.5 * cores else ""
    return (
        f"{_processor()}, {cores} cores, Python {platform.python_version()}, {packages}; "
        f"{datetime.now(UTC):%Y-%m-%d}{shared}."
    )


def _without_file(arguments: Sequence[str]) -> list[str]:
    """Arguments without `--keep FILE` and `--folder FOLDER`, which do not affect the figures."""
    kept = list(arguments)
    for name in ("--keep", "--folder"):
        if name in kept:
            del kept[(place := kept.index(name)) : place + 2]
    return kept


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
