"""What is deployed is pinned and hashed, and the containers can do little."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-torch.lock")
ENTRY = re.compile(
    r"^(?P<name>[a-z0-9-]+)==(?P<version>\S+)(?: ;[^\\]*)? \\\n(?P<hashes>(?:    --hash=.*\n)+)", re.M
)
TARGET = {"python_version": "3.11", "python_full_version": "3.11.14", "sys_platform": "linux"}


def locked(name: str) -> dict[str, str]:
    """Distribution -> version."""
    return {found["name"]: found["version"] for found in ENTRY.finditer((ROOT / name).read_text())}


def compose_services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_distribution_has_a_version_and_hashes(name: str) -> None:
    text = (ROOT / name).read_text()
    entries = list(ENTRY.finditer(text))
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", " "))]
    assert len(entries) == len(lines) > 10
    for entry in entries:
        assert re.fullmatch(r"(    --hash=sha256:[0-9a-f]{64}( \\)?\n)+", entry["hashes"]), entry["name"]


def test_the_lock_has_all_that_the_project_needs_in_versions_that_it_takes() -> None:
    have = {name: version for lock in LOCKS for name, version in locked(lock).items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"]:
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate(TARGET):
            assert needed.specifier.contains(have[needed.name.lower().replace("_", "-")]), text


def test_the_image_installs_from_the_lock_alone() -> None:
    text = (ROOT / "Dockerfile").read_text()
    versions = locked("requirements-torch.lock")
    assert f"torch=={versions['torch']} torchvision=={versions['torchvision']}" in text
    for line in re.findall(r"pip install (.*)", text):
        assert "--no-deps" in line, line
        assert "--require-hashes" in line or "torch==" in line or line.endswith("--no-build-isolation ."), (
            line
        )


def test_every_image_is_of_one_release() -> None:
    images = [service["image"] for service in compose_services().values()]
    images += re.findall(r"^ARG BASE=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert len(images) == 6
    assert all(re.search(r":\d+\.\d+\.\d+(-[\w-]+)?$", image) for image in images), images


@pytest.mark.parametrize("name", ["backend", "worker", "schedule", "redis"])
def test_containers_can_do_little(name: str) -> None:
    service = compose_services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"] == ["/tmp"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & set(service)
    assert service.get("user") or name != "redis", "the others' image says who they are"


def test_only_loopback_is_published_by_default() -> None:
    ports = [port for service in compose_services().values() for port in service.get("ports", [])]
    assert ports
    assert all(re.match(r"\$\{\w+_ADDRESS:-127\.0\.0\.1\}:", port) for port in ports)
