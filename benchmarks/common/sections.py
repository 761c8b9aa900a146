"""Sections of docs/performance: each benchmark writes one file, and the page that lists them."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECTIONS = ROOT / "docs/performance"
PAGE = ROOT / "docs/performance.md"
PACKAGES = ("torch", "numpy", "opencv-python-headless")
INTRODUCTION = """# Performance

Each section is written by a script in benchmarks/, which it names; `make bench` runs all of them. What counts
are ratios of things measured in one run, in turn. Seconds depend on the machine, and
on what else ran on it: a load average of as much as there are cores says that it was shared, and that the
figures are to be measured again.

"""


def write_section(name: str, title: str, *paragraphs: str) -> None:
    """Prints a section, and writes it to docs/performance/<name>.md with the command, machine and date.

    Args:
        name: Of the file.
        title: Of the section.
        paragraphs: Markdown, tables among them.
    """
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    text = "\n\n".join([f"# {title}", f"`{command}`. {machine()}", *paragraphs]) + "\n"
    SECTIONS.mkdir(parents=True, exist_ok=True)
    (SECTIONS / f"{name}.md").write_text(text, encoding="utf-8")
    lines = [f"- [{_title(path)}](performance/{path.name})" for path in sorted(SECTIONS.glob("*.md"))]
    PAGE.write_text(INTRODUCTION + "\n".join(lines) + "\n", encoding="utf-8")
    print(text)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def machine() -> str:
    """Where and with what this runs, in a sentence."""
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    load = os.getloadavg()[1]
    return (
        f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}; "
        f"{datetime.now(UTC):%Y-%m-%d}, load average {load:.1f}."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _title(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
