"""Everything worth knowing about a GPU, in one run of at most 8 minutes: a section for docs/performance.md.

Numbers against the golden files, half precision, the phrase path beside the paper's 26.68 ms, image
encoders, memory, the served engine, a fine-tune, a soak. Each step runs in a process of its own: one that
fails or takes too long costs only its own table. It needs no network, no weights but the packaged ones, and
PyTorch's CUDA wheels, on Linux those of the default package index. A second GPU is used as well.

    python benchmarks/gpu_check.py [--dry-run] [--step "Image encoders"] [--out FILE]

--dry-run executes the same lines on a CPU in tiny sizes, except for CUDA's own; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__":  # run as a file, whose folder is the first place for imports
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.common.gpu_steps import DRY, GPU, STEPS, Sizes, Table
from benchmarks.common.sections import ROOT, machine, table

BUDGET_S = 8 * 60.0
LIMITS_S = {"Soak": 150.0, "Image encoders": 120.0, "Engine": 90.0}
LIMIT_S = 60.0
"""Of all other steps."""
TITLE = "On a GPU"


def run_step(name: str, sizes: Sizes) -> Table | str:
    """The table of a step, or what it failed with: no failure ends the check."""
    try:
        return STEPS[name](sizes)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return _reason(error)


def run_apart(name: str, limit_s: float) -> Table | str:
    """The same, in a process of its own: a CUDA error makes a process unusable."""
    command = [sys.executable, __file__, "--one", name]
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=limit_s)
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return f"ended after {limit_s:.0f} s"
    except (ValueError, IndexError):
        return f"its process ended with status {done.returncode}"
    return Table(**found) if isinstance(found, dict) else str(found)


def section(found: dict[str, Table | str], sizes: Sizes, took_s: float) -> str:
    """Markdown of all steps; failures are named where their table would be."""
    parts = [f"## {TITLE}", f"`make gpu-check`. {_device(sizes)}; {machine()} {took_s:.0f} s in total."]
    for name, result in found.items():
        parts.append(f"### {name}")
        summary = (STEPS[name].__doc__ or "").strip()
        failed = isinstance(result, str)
        parts.append(f"**Failed**: {result}" if failed else f"{summary}\n\n{table(result.head, result.rows)}")
    return "\n\n".join(parts) + "\n"


def check(names: list[str], dry_run: bool) -> str:
    """Runs steps within the time, and returns the section."""
    since_s = time.monotonic()
    found: dict[str, Table | str] = {}
    for name in names:
        left_s = BUDGET_S - (time.monotonic() - since_s)
        print(f"{name} ({left_s:.0f} s left)", file=sys.stderr, flush=True)
        if left_s <= 0:
            found[name] = "no time left"
        elif dry_run:
            found[name] = run_step(name, DRY)
        else:
            found[name] = run_apart(name, min(left_s, LIMITS_S.get(name, LIMIT_S)))
    return section(found, DRY if dry_run else GPU, time.monotonic() - since_s)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'without a message'}"


def _device(sizes: Sizes) -> str:
    if sizes.device == "cpu":
        return "Dry run on a CPU: figures mean nothing"
    properties = torch.cuda.get_device_properties(0)
    gib = properties.total_memory / 2**30
    return f"{torch.cuda.device_count()} x {properties.name}, {gib:.0f} GiB, CUDA {torch.version.cuda}"


def main() -> None:
    """Runs the check, or with --one a step for the process that asks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--step", action="append", choices=list(STEPS), help="only this step; repeatable")
    parser.add_argument("--out", type=Path, help="file for the section, besides stdout")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        result = run_step(options.one, GPU)
        print(json.dumps(asdict(result) if isinstance(result, Table) else result))
        return
    if not options.dry_run and not torch.cuda.is_available():
        kind = f"its CUDA build {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        raise SystemExit(
            f"no GPU: PyTorch {torch.__version__} is {kind}. On Linux, `pip install -r "
            "requirements-torch.lock` installs the CUDA build; nvidia-smi lists the GPUs. --dry-run needs "
            "none."
        )
    text = check(options.step or list(STEPS), options.dry_run)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
