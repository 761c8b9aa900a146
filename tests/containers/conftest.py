"""One compose stack for all container tests, which go through the life of an installation in order."""

from __future__ import annotations

import os
import secrets
import shlex
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.containers.project import ContainerProject
from tests.containers.stack import ROOT, NoEngineError, Stack, docker, require_engine

HERE = Path(__file__).parent
BUILD_S = 3600.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.containers)


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The image is built and .env is made, as docs/deployment.md says; nothing runs yet."""
    try:
        require_engine()
    except NoEngineError as error:
        pytest.fail(str(error), pytrace=False)
    folder = tmp_path_factory.mktemp("stack")
    out = folder / "out"
    out.mkdir()
    out.chmod(0o777)  # the image's user is not known on this machine
    stack = Stack(f"sspsam-{secrets.token_hex(4)}", folder)
    stack.env_file.write_text((ROOT / ".env.example").read_text())
    image = stack.settings["SSPSAM_IMAGE"]
    build(stack, image)
    stack.append(docker("run", "--rm", image, "secrets", "--label-studio"))
    stack.change(
        BACKEND_PORT=str(free_port()),
        LABEL_STUDIO_PORT=str(free_port()),
        PROXY_PORT=str(free_port()),
        CONSOLE_PORT=str(free_port()),
        OUT_DIR=str(out),
        FINETUNE_AFTER="10",
    )
    try:
        yield stack
    finally:
        stack.report()
        stack.compose("down", "--volumes", "--remove-orphans")


@pytest.fixture(scope="session")
def project(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> ContainerProject:
    stack.up("--no-build")
    stack.wait_healthy("label-studio")
    return ContainerProject.create(stack, tmp_path_factory.mktemp("pictures"))


def build(stack: Stack, image: str) -> None:
    """Builds the image before there is a complete .env, as an operator does.

    BUILD_OPTIONS in the environment holds further options of `docker build`, such as a package mirror.
    """
    began_s = time.monotonic()
    options = ["--build-arg", f"TORCH_INDEX={torch_index(stack)}"]
    options += shlex.split(os.environ.get("BUILD_OPTIONS", ""))
    docker("build", "--tag", image, *options, ".", timeout_s=BUILD_S)
    size = int(docker("image", "inspect", "--format", "{{.Size}}", image))
    stack.note(f"image of {size / 1e9:.1f} GB built", time.monotonic() - began_s)


def torch_index(stack: Stack) -> str:
    """The index of CPU builds where it answers; else the package index, as for GPUs."""
    index = os.environ.get("TORCH_INDEX", stack.settings["TORCH_INDEX"])
    try:
        requests.get(f"{index}/torch/", timeout=10, stream=True).raise_for_status()
    except requests.RequestException:
        return ""
    return index
