"""Deployed components are pinned and hashed, and containers have minimal privileges."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.lock import CONSUMERS, DIGEST, LABEL_STUDIO, LOCKS, requirements_digest

ROOT = Path(__file__).parents[1]
ENTRY = re.compile(
    r"^(?P<name>[a-z0-9-]+)==(?P<version>\S+)(?: ; (?P<marker>[^\\]*))? \\\n(?P<hashes>(?:    --hash=.*\n)+)",
    re.M,
)
PYTHONS = ("3.11", "3.12", "3.13")


SERVICE = ("requirements-torch.lock", "requirements.lock")
SHARED = tuple(name for name in LOCKS if name not in (LABEL_STUDIO, CONSUMERS))
"""Of the service's virtual environment."""


def locked(*names: str, python: str = "3.11") -> dict[str, str]:
    """Distribution -> version, on Linux."""
    target = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    return {
        found["name"]: found["version"]
        for name in names
        for found in ENTRY.finditer((ROOT / name).read_text())
        if found["marker"] is None or Marker(found["marker"]).evaluate(target)
    }


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


@pytest.mark.parametrize("name", LOCKS)
def test_no_lock_is_older_than_pyproject(name: str) -> None:
    assert f"{DIGEST}{requirements_digest()}\n" in (ROOT / name).read_text(), "run `make lock LOCK=--keep`"


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_all_that_the_project_needs_in_versions_that_it_takes(python: str) -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, groups = document["project"], document["dependency-groups"]
    extras = [text for extra in project["optional-dependencies"].values() for text in extra]
    everything = locked(*SHARED, python=python)
    for needed, have in (
        (project["dependencies"] + document["build-system"]["requires"], locked(*SERVICE, python=python)),
        (extras + groups["dev"], everything),
        (groups["label-studio"], locked(LABEL_STUDIO, python=python)),
        (groups["consumers"], locked(CONSUMERS, python=python)),
    ):
        for requirement in map(Requirement, needed):
            if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
                assert requirement.specifier.contains(have[canonicalize_name(requirement.name)])


def test_nothing_is_locked_twice() -> None:
    names = [name for lock in SHARED for name in locked(lock)]
    assert len(names) == len(set(names))
    assert not locked(CONSUMERS).items() & locked(*SHARED).items(), "it takes the others from the service"


def test_torch_is_not_installed_a_second_time() -> None:
    assert not [name for name in locked(CONSUMERS) if name.startswith(("torch", "nvidia-cu", "triton"))]


def test_serving_needs_no_package_that_no_product_code_imports() -> None:
    assert not {"tensorboard", "matplotlib", "label-studio-sdk", "pandas", "pytest"} & set(locked(*SERVICE))


def test_requirements_are_those_that_a_package_index_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [text for extra in project["optional-dependencies"].values() for text in extra]
    assert all(Requirement(text).url is None for text in project["dependencies"] + extras)


def test_packages_whose_private_names_are_used_have_an_upper_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = {need.name: need.specifier for need in map(Requirement, project["dependencies"])}
    for name in ("rq", "torch"):
        assert any(bound.operator == "<" for bound in bounds[name]), name


def test_the_image_installs_from_the_lock_alone() -> None:
    text = (ROOT / "Dockerfile").read_text()
    versions = locked("requirements-torch.lock")
    assert f"torch=={versions['torch']} torchvision=={versions['torchvision']}" in text
    for line in re.findall(r"pip install (.*)", text):
        assert "--no-deps" in line, line
        how = ("--require-hashes", "torch==", "--no-build-isolation /tmp/sources")
        assert any(option in line for option in how), line


def test_every_image_is_of_one_release() -> None:
    images = [service["image"].rstrip("}") for service in compose_services().values()]
    images += re.findall(r"^ARG BASE=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert len(images) == 6
    assert all(re.search(r":\d+\.\d+\.\d+(-[\w-]+)?$", image) for image in images), images


@pytest.mark.parametrize("name", ["backend", "worker", "schedule", "redis"])
def test_containers_can_do_little(name: str) -> None:
    service = compose_services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(mount.startswith("/tmp:size=") for mount in service["tmpfs"])
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & set(service)
    assert service.get("user") or name != "redis", "the others' image says who they are"


def test_only_loopback_is_published_by_default() -> None:
    ports = [port for service in compose_services().values() for port in service.get("ports", [])]
    assert ports
    assert all(re.match(r"\$\{\w+_ADDRESS:-127\.0\.0\.1\}:", port) for port in ports)
