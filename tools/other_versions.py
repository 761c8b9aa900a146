"""Installs versions other than the locked ones into .venv-newest or .venv-lowest, for `make newest lowest`.

`newest` is the newest version of everything that pyproject.toml allows. `lowest` is the lower bound of every
requirement and extra, with the newest allowed versions of their dependencies and of the development tools.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OLDEST_PYTHON = "3.11"
LOWEST = ("--resolution=lowest-direct", "--no-deps", "--no-header", "--no-annotate", "--quiet")
SHOWN = ("numpy", "redis", "rq", "torch")


def main() -> None:
    """Creates the virtual environment, replacing an earlier one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", choices=["newest", "lowest"])
    parser.add_argument("--uv", type=Path, default=Path("uv"), help="the program")
    parser.add_argument("--python", default="python3", help="the interpreter")
    arguments = parser.parse_args()
    install(arguments.uv, arguments.python, ROOT / f".venv-{arguments.which}", arguments.which == "lowest")


def install(program: Path, interpreter: str, venv: Path, lowest: bool) -> None:
    """Installs the project and its development tools, and checks that all versions fit together."""

    def uv(*words: str) -> str:
        done = subprocess.run([str(program), *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"{done.stdout}failed: uv {' '.join(words)}")
        return done.stdout

    print(f"Installing into {venv.name}: takes several minutes", flush=True)
    uv("venv", "--quiet", "--clear", "--python", interpreter, str(venv))
    python, everything = f"--python={venv}", ["--requirement=pyproject.toml", "--all-extras", "--group=dev"]
    if lowest:
        oldest = f"--python-version={OLDEST_PYTHON}"
        bounds = venv / "lowest.txt"
        bounds.write_text(uv("pip", "compile", "pyproject.toml", "--all-extras", oldest, *LOWEST))
        everything.append(f"--constraint={bounds}")
    uv("pip", "install", "--quiet", python, *everything)
    uv("pip", "install", "--quiet", python, "--no-deps", "--editable", ".")
    uv("pip", "check", "--quiet", python)
    versions = uv("pip", "freeze", python).splitlines()
    log = venv / "install.log"
    log.write_text("\n".join(versions) + "\n", encoding="utf-8")
    shown = [version for version in versions if version.partition("==")[0] in SHOWN]
    print(f"Installed {', '.join(shown)}; the others are in {log}", flush=True)


if __name__ == "__main__":
    main()
