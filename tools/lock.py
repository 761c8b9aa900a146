"""Locks the requirements of pyproject.toml with hashes for every supported Python and platform: `make lock`.

| file | holds |
|---|---|
| requirements-torch.lock | PyTorch and CUDA: servers without a GPU take them from another index |
| requirements.lock | the other requirements of the service |
| requirements-extras.lock | in addition, the requirements of all extras |
| requirements-dev.lock | in addition, those of tests, linters and benchmarks |
| requirements-label-studio.lock | Label Studio, for its own virtual environment |
| requirements-consumers.lock | tools that read exports, for a virtual environment beside the service's |

The first four are one resolution: a distribution has the same version in all of them. The last one has only
what the tools need in other versions, or in addition. The head of each file
holds a digest of its input, with which a test detects changes of pyproject.toml.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYPROJECT = ROOT / "pyproject.toml"
OLDEST_PYTHON = "3.11"
PLATFORMS = " and (sys_platform == 'darwin' or sys_platform == 'linux')"
EVERYWHERE = f" ; python_full_version < '3.15'{PLATFORMS}"
"""Marker that uv adds to each entry for `environments` in pyproject.toml. Without it, pip fails on other
Pythons and platforms because a file is missing."""
ENTRY = re.compile(r"^[a-z0-9][^\n]*\\\n(?:    --hash[^\n]*\n?)+", re.MULTILINE)
TORCH = re.compile(r"(torch|torchvision|triton|nvidia-[\w-]+|cuda-[\w-]+)==")
DIGEST = "# pyproject.toml: "
LABEL_STUDIO = "requirements-label-studio.lock"
CONSUMERS = "requirements-consumers.lock"
LOCKS = {
    "requirements-torch.lock": "PyTorch and CUDA from the Python package index",
    "requirements.lock": "all that the service needs but PyTorch",
    "requirements-extras.lock": "what the project's extras need in addition",
    "requirements-dev.lock": "what tests, linters and benchmarks need in addition",
    LABEL_STUDIO: "Label Studio, for a virtual environment of its own",
    CONSUMERS: "tools that read exports, for a virtual environment beside the service's",
}


def requirements_digest() -> str:
    """Digest of all requirements in pyproject.toml."""
    document = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    project = document["project"]
    relevant = {
        "build": document["build-system"]["requires"],
        "python": project["requires-python"],
        "dependencies": project["dependencies"],
        "extras": project["optional-dependencies"],
        "groups": document["dependency-groups"],
        "environments": document["tool"]["uv"],
        "constraints": document["tool"]["lock"],
    }
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def compile_requirements(uv: str, *sources: str, constraints: list[str], preferred: str) -> list[str]:
    """Resolves sources; keeps the versions in `preferred` if possible."""
    build = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["build-system"]["requires"]
    command = [
        uv,
        "pip",
        "compile",
        "--universal",
        "--generate-hashes",
        "--fork-strategy",
        "fewest",
        "--quiet",
    ]
    command += ["--python-version", OLDEST_PYTHON, "--no-annotate", "--no-header"]
    with tempfile.TemporaryDirectory() as name:
        output, limits, builds = (Path(name) / file for file in ("output.txt", "limits.txt", "build.txt"))
        output.write_text(preferred)
        limits.write_text("\n".join(constraints))
        builds.write_text("\n".join(build))
        command += ["--constraint", str(limits), "--output-file", str(output)]
        subprocess.run([*command, *sources, str(builds)], cwd=ROOT, check=True)
        return ENTRY.findall(output.read_text().replace(EVERYWHERE, "").replace(PLATFORMS, ""))


def main() -> None:
    """Writes the lock files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--uv", default="uv", help="the program")
    parser.add_argument("--keep", action="store_true", help="change versions only if necessary")
    arguments = parser.parse_args()
    for name, entries in resolve(arguments.uv, arguments.keep).items():
        write_lock(name, entries)


def resolve(uv: str, keep: bool) -> dict[str, list[str]]:
    """File -> entries."""
    present = {name: (ROOT / name).read_text() for name in LOCKS if keep and (ROOT / name).exists()}
    label_studio_preferred, consumers_preferred = present.pop(LABEL_STUDIO, ""), present.pop(CONSUMERS, "")
    limits = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]["lock"]["constraints"]
    project = PYPROJECT.name
    development = compile_requirements(
        uv, project, "--all-extras", "--group=dev", constraints=limits, preferred="".join(present.values())
    )
    preferred = "".join(development)
    extras = compile_requirements(uv, project, "--all-extras", constraints=limits, preferred=preferred)
    service = compile_requirements(uv, project, constraints=limits, preferred=preferred)
    label_studio = compile_requirements(
        uv, "--group=label-studio", constraints=[], preferred=label_studio_preferred
    )
    consumers = compile_requirements(
        uv, "--group=consumers", constraints=limits, preferred=consumers_preferred or preferred
    )
    versions = set(map(version_of, development))
    for entry in [*service, *extras]:
        if version_of(entry) not in versions:
            sys.exit(f"development would need another version than {version_of(entry)}")
    return {
        "requirements-torch.lock": [entry for entry in service if TORCH.match(entry)],
        "requirements.lock": [entry for entry in service if not TORCH.match(entry)],
        "requirements-extras.lock": [entry for entry in extras if entry not in service],
        "requirements-dev.lock": [entry for entry in development if entry not in extras],
        LABEL_STUDIO: label_studio,
        CONSUMERS: [entry for entry in consumers if version_of(entry) not in versions],
    }


def version_of(entry: str) -> str:
    """`name==version`, without marker and hashes."""
    return entry.split(maxsplit=1)[0]


def write_lock(name: str, entries: list[str]) -> None:
    head = (
        f"# Made by `make lock`: {LOCKS[name]}.\n{DIGEST}{requirements_digest()}\n"
        f"# pip install --require-hashes --no-deps -r {name}\n"
    )
    (ROOT / name).write_text(head + "".join(entry.rstrip("\n") + "\n" for entry in entries), encoding="utf-8")


if __name__ == "__main__":
    main()
