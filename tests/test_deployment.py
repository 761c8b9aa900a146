"""The deployment files match the code: commands, options, variables, folders, limits. Needs no engine."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from backend.settings import Settings
from backend.web.serve import STOP_S
from tests.command_lines import check_command

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "docker-compose.yml"
GPU = ROOT / "docker-compose.gpu.yml"
OURS = ("backend", "worker", "schedule")
ALL = ("redis", *OURS, "label-studio")
VARIABLE = re.compile(r"\$\{(\w+)")
LABEL_STUDIO_MUST_HAVE = {"ML_BLOCK_LOCAL_IP": "false", "SSRF_PROTECTION_ENABLED": "false"}
"""Without these two its webhooks to a private address never arrive."""

NOT_IN_COMPOSE = {
    "OPEN_ACCESS": "a container listens on more than this machine",
    "JOB_MODULES": "the image holds no other jobs",
}
SET_BY_COMPOSE = {"REDIS_URL", "MODEL_DIR", "HOST", "PORT"}
"""The containers' own addresses and folder."""
LIBRARIES = {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "WEIGHTS_MIRROR", "HF_ENDPOINT", "HF_TOKEN",
             "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION",
             "AWS_ENDPOINT_URL", "GOOGLE_APPLICATION_CREDENTIALS", "MODEL", "REQUESTS_CA_BUNDLE",
             "OMP_NUM_THREADS", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"}  # fmt: skip
"""Read by the commands and their libraries."""
OF_THE_BUILD = {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"}
EXAMPLES = dict(
    line.removeprefix("#").split("=", 1)
    for line in (ROOT / ".env.example").read_text().splitlines()
    if re.match("#?[A-Z_]+=", line)
)


def services(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())["services"]
    return found


def setting_names() -> set[str]:
    return {name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("name", OURS)
def test_every_service_runs_a_command_that_exists(name: str) -> None:
    words = [re.sub(r"\$\{\w+:-(\w+)\}", r"\1", word) for word in services(COMPOSE)[name]["command"]]
    check_command(words)


@pytest.mark.parametrize("name", OURS)
def test_every_setting_and_every_library_variable_reaches_the_containers(name: str) -> None:
    environment = services(COMPOSE)[name]["environment"]
    assert set(environment) == (setting_names() - NOT_IN_COMPOSE.keys()) | LIBRARIES
    for variable in LIBRARIES - {"NO_PROXY"}:
        assert environment[variable] is None, "an empty value is not the same as none"


@pytest.mark.parametrize("name", OURS)
def test_a_setting_is_read_from_the_variable_of_its_name_or_is_compose_s_own(name: str) -> None:
    for setting, value in services(COMPOSE)[name]["environment"].items():
        if value is not None:
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
        assert set(service.get("environment", {})) <= setting_names()


def test_the_examples_name_every_variable_that_compose_reads_and_no_other() -> None:
    text = COMPOSE.read_text() + GPU.read_text() + (ROOT / "deploy/compose.scale.yml").read_text()
    read = set(VARIABLE.findall(text))
    assert set(EXAMPLES) == read | LIBRARIES | OF_THE_BUILD | {"COMPOSE_PROFILES", "COMPOSE_FILE"}


def test_the_examples_hold_no_secret() -> None:
    secrets = {
        name: value
        for name, value in EXAMPLES.items()
        if re.fullmatch("[A-Z_]*(KEY|SECRET|PASS|PASSWORD)", name)
    }
    assert len(secrets) == 7
    assert not any(secrets.values())


def test_every_service_that_others_wait_for_has_a_health_check() -> None:
    compose = services(COMPOSE)
    for service in compose.values():
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in compose[needed]
    assert all("healthcheck" in compose[name] for name in ("redis", "backend", "worker", "label-studio"))


def test_our_image_is_of_this_release() -> None:
    images = {service["image"] for service in services(COMPOSE).values()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert EXAMPLES["SSPSAM_IMAGE"] == f"ssp-sam-assist:{project['version']}"
    assert f"${{SSPSAM_IMAGE:-{EXAMPLES['SSPSAM_IMAGE']}}}" in images
    assert {service["image"] for service in services(GPU).values()} == {
        f"${{SSPSAM_IMAGE:-{EXAMPLES['SSPSAM_IMAGE']}-cuda}}"
    }


def test_label_studio_of_compose_lets_its_webhooks_through_and_reaches_nothing_else_of_ours() -> None:
    compose = services(COMPOSE)
    label_studio = compose["label-studio"]
    assert LABEL_STUDIO_MUST_HAVE.items() <= label_studio["environment"].items()
    assert label_studio["profiles"] == ["label-studio"]
    assert not set(label_studio["networks"]) & set(compose["redis"]["networks"])
    assert label_studio["environment"]["DISABLE_SIGNUP_WITHOUT_LINK"] == "true"


def test_label_studio_is_the_same_release_everywhere() -> None:
    version = re.search(r'"label-studio==(\S+)"', (ROOT / "pyproject.toml").read_text())
    assert version is not None
    assert services(COMPOSE)["label-studio"]["image"] == f"heartexlabs/label-studio:{version[1]}"


def test_label_studio_reaches_the_backend_by_a_host_name_that_it_accepts() -> None:
    """Its URL field takes no host without a dot."""
    (alias,) = services(COMPOSE)["backend"]["networks"]["labels"]["aliases"]
    assert "." in alias
    assert urlsplit(EXAMPLES["PUBLIC_URL"]).hostname == alias
    assert EXAMPLES["PUBLIC_URL"] in services(COMPOSE)["backend"]["environment"]["PUBLIC_URL"]


def test_no_proxy_stands_between_the_services() -> None:
    direct = services(COMPOSE)["worker"]["environment"]["NO_PROXY"].split(",")
    for name in ("LABEL_STUDIO_URL", "PUBLIC_URL"):
        assert urlsplit(EXAMPLES[name]).hostname in direct


def test_requests_at_hand_are_answered_before_the_backend_is_killed() -> None:
    assert int(services(COMPOSE)["backend"]["stop_grace_period"].removesuffix("s")) > STOP_S


@pytest.mark.parametrize("name", ALL)
def test_no_container_fills_the_hosts_memory_or_disk(name: str) -> None:
    service = services(COMPOSE)[name]
    assert service["mem_limit"]
    assert {"max-size", "max-file"} <= service["logging"]["options"].keys()
    assert all("size=" in mount for mount in service.get("tmpfs", []))


def test_redis_keeps_every_write_and_asks_for_a_password() -> None:
    redis = services(COMPOSE)["redis"]
    command = shlex.split(redis["command"][-1])
    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--requirepass") + 1] == "$$REDIS_PASSWORD"
    assert yaml.safe_load(COMPOSE.read_text())["networks"]["redis"] == {"internal": True}


def test_the_image_runs_without_root_and_copies_every_package() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER ")][-1] == "USER sspsam"
    assert 'ENTRYPOINT ["sspsam"]' in lines
    packages = {path.parent.name for path in ROOT.glob("*/py.typed")}
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


def test_the_documentation_lists_every_setting_and_no_other() -> None:
    table = (ROOT / "docs/deployment.md").read_text().partition("## Variables")[2]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(cells))) >= setting_names()


def documented_commands() -> list[list[str]]:
    """What follows `sspsam` in the code blocks of the page, also where a container runs it."""
    page = (ROOT / "docs/deployment.md").read_text()
    blocks = "\n".join(re.findall(r"```\n(.*?)```", page, re.DOTALL)).replace("\\\n", " ")
    runs = re.findall(
        r"(?:(?<!-n )\bsspsam|docker run --rm \S+|run --rm backend) ((?!create)[a-z][^#|>\n]*)", blocks
    )
    return [shlex.split(arguments) for arguments in runs]


@pytest.mark.parametrize("arguments", documented_commands(), ids=" ".join)
def test_every_documented_command_is_understood(arguments: list[str]) -> None:
    check_command(arguments)


@pytest.mark.parametrize(
    "arguments",
    ["exec", "secrets --nonsense", "versions nonsense", "export --out x", "worker --spare-cores y"],
)
def test_a_command_that_would_not_be_understood_is_noticed(arguments: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no command|no such option|missing|required|valid"):
        check_command(arguments.split())
