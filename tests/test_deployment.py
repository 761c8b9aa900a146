"""What the deployment files name exists: commands, variables, folders, targets. It needs no engine."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from backend.settings import Settings
from sspsam.cli import build_app

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "docker-compose.yml"
GPU = ROOT / "docker-compose.gpu.yml"
OURS = ("backend", "worker", "schedule")
VARIABLE = re.compile(r"\$\{(\w+)")
LABEL_STUDIO_MUST_HAVE = {"ML_BLOCK_LOCAL_IP": "false", "SSRF_PROTECTION_ENABLED": "false"}
"""Without these two its webhooks to a private address never arrive."""


NOT_IN_COMPOSE = {
    "OPEN_ACCESS": "a container listens on more than this machine",
    "JOB_MODULES": "the image holds no other jobs",
}
SET_BY_COMPOSE = {"REDIS_URL", "MODEL_DIR", "HOST", "PORT"}
"""The containers' own addresses and folder."""
EXAMPLES = dict(
    line.split("=", 1)
    for line in (ROOT / ".env.example").read_text().splitlines()
    if re.match("[A-Z_]+=", line)
)


def services(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())["services"]
    return found


def setting_names() -> set[str]:
    return {name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("name", OURS)
def test_every_service_runs_a_command_that_exists(name: str) -> None:
    commands = typer.main.get_command(build_app()).commands
    assert services(COMPOSE)[name]["command"][0] in commands


@pytest.mark.parametrize("name", OURS)
def test_every_setting_can_be_set_and_nothing_else(name: str) -> None:
    assert set(services(COMPOSE)[name]["environment"]) == setting_names() - NOT_IN_COMPOSE.keys()


@pytest.mark.parametrize("name", OURS)
def test_a_setting_is_read_from_the_variable_of_its_name_or_is_compose_s_own(name: str) -> None:
    for setting, value in services(COMPOSE)[name]["environment"].items():
        assert VARIABLE.findall(value) == ([] if setting in SET_BY_COMPOSE else [setting])


def test_the_examples_are_the_defaults() -> None:
    """But for addresses, which are of the containers' network, and for secrets."""
    for name in set(EXAMPLES) & setting_names() - {"LABEL_STUDIO_URL", "LABEL_STUDIO_HOST", "PUBLIC_URL"}:
        made = Settings(**({name.lower(): EXAMPLES[name]} if EXAMPLES[name] else {}))
        field = name.lower()
        assert getattr(made, field) == Settings.model_fields[field].default, name


def test_every_variable_of_the_gpu_file_is_a_setting() -> None:
    for name, service in services(GPU).items():
        assert name in services(COMPOSE)
        assert set(service["environment"]) <= setting_names()


def test_the_examples_name_every_variable_that_compose_reads_and_no_other() -> None:
    assert set(EXAMPLES) == set(VARIABLE.findall(COMPOSE.read_text()))


def test_the_examples_hold_no_secret() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    secrets = [line for line in lines if re.match(r"[A-Z_]*(KEY|SECRET|PASS|PASSWORD)=", line)]
    assert len(secrets) == 4
    assert all(line.endswith("=") for line in secrets)


def test_every_service_that_others_wait_for_has_a_health_check() -> None:
    compose = services(COMPOSE)
    for service in compose.values():
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in compose[needed]
    assert all("healthcheck" in compose[name] for name in ("redis", "backend", "worker", "label-studio"))


def test_images_are_pinned_to_a_release() -> None:
    images = {service["image"] for service in services(COMPOSE).values()}
    assert all(re.search(r":\d+\.\d+\.\d+", image) for image in images), images
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"ssp-sam-assist:{project['version']}" in images


def test_label_studio_of_compose_lets_its_webhooks_through() -> None:
    label_studio = services(COMPOSE)["label-studio"]
    assert LABEL_STUDIO_MUST_HAVE.items() <= label_studio["environment"].items()
    assert label_studio["profiles"] == ["label-studio"]


def test_label_studio_is_the_same_release_everywhere() -> None:
    version = re.search(r'"label-studio==(\S+)"', (ROOT / "pyproject.toml").read_text())
    assert version is not None
    assert services(COMPOSE)["label-studio"]["image"] == f"heartexlabs/label-studio:{version[1]}"


def test_redis_keeps_every_write() -> None:
    command = services(COMPOSE)["redis"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"


def test_the_image_runs_without_root_and_copies_every_package() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER ")][-1] == "USER sspsam"
    assert 'ENTRYPOINT ["sspsam"]' in lines
    packages = {path.parent.name for path in ROOT.glob("*/py.typed")}
    copied = {line.split()[1] for line in lines if line.startswith("COPY ") and len(line.split()) == 3}
    assert copied == packages
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {f"!{package}" for package in packages} <= set(ignored)


def test_the_image_is_given_no_secret() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert not re.search(r"(KEY|SECRET|PASS|TOKEN)\w*=", text)


def test_every_file_of_a_package_is_installed() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package, globs in patterns.items():
        folder = ROOT / package
        installed = {path for pattern in globs for path in folder.glob(pattern)}
        files = {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        assert {path for path in files if path.suffix != ".py"} <= installed


def test_continuous_integration_ends_with_the_browser_test() -> None:
    targets = re.findall(r"^make (\w+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert targets == ["test", "check", "e2e"]
    rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(targets) <= set(rules)


@pytest.mark.parametrize("variable", ["HOST", "PORT", "REDIS_URL", "MODEL_DIR", "WEBHOOK_SECRET"])
def test_what_every_part_shares_is_set(variable: str) -> None:
    assert variable in services(COMPOSE)["backend"]["environment"]


def test_the_documentation_lists_every_setting_and_no_other() -> None:
    table = (ROOT / "docs/deployment.md").read_text().partition("## Variables")[2]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(cells))) == setting_names()
