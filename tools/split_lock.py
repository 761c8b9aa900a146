"""Splits what `uv pip compile` prints: PyTorch and CUDA go to a file of their own, requirements-torch.lock.

On servers without a GPU PyTorch comes from an index of its own, with other files and so other hashes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
REQUIREMENT = re.compile(r"^[a-z0-9][^\n]*\\\n(?:    --hash[^\n]*\n?)+", re.MULTILINE)
TORCH = re.compile(r"(torch|torchvision|triton|nvidia-[\w-]+|cuda-[\w-]+)==")
HEAD = (
    "# Made by `make lock`: {what}, for Linux on x86-64 and Python 3.11.\n"
    "# pip install --require-hashes --no-deps -r {name}\n"
)
FILES = {
    "requirements.lock": ("all that the service needs but PyTorch", False),
    "requirements-torch.lock": ("PyTorch's CUDA build from the Python package index", True),
}


def main() -> None:
    """Reads standard input, writes both files."""
    requirements = REQUIREMENT.findall(sys.stdin.read().rstrip() + "\n")
    assert requirements, "nothing was compiled"
    for name, (what, torch) in FILES.items():
        chosen = [entry for entry in requirements if bool(TORCH.match(entry)) is torch]
        (ROOT / name).write_text(HEAD.format(what=what, name=name) + "".join(chosen))


if __name__ == "__main__":
    main()
