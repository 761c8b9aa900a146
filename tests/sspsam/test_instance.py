"""Selection of a command's service: options, --data-dir, environment, running instance, defaults."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sspsam.instance import (
    INSTANCE_FILE,
    LOCK_FILE,
    Instance,
    InstanceError,
    default_model_dir,
    find_instance,
    find_target,
    published,
)

SECRETS = {"LABEL_STUDIO_API_KEY": "key", "WEBHOOK_SECRET": "hook", "BASIC_AUTH_PASS": "pass"}
SAID = ("MODEL_DIR", "VERSIONS_URL", "PRESET", "WEIGHTS", "SAM_ENCODER", "REDIS_URL", "LABEL_STUDIO_URL")


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has run nothing, in a folder of their own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    for name in (*SAID, *SECRETS):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")


@contextmanager
def service(folder: Path, command: str = "up", **more: str) -> Iterator[Instance]:
    """A running service as far as commands can see."""
    folder.mkdir(parents=True, exist_ok=True)
    variables = {
        "MODEL_DIR": str(folder / "models"),
        "REDIS_URL": f"unix://{folder}/redis.sock",
        "LABEL_STUDIO_URL": "http://127.0.0.1:8081",
        **SECRETS,
        **more,
    }
    with (folder / LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with published(folder, command, variables):
            yield Instance(folder, command, os.getpid(), variables)


def test_a_running_service_is_found_from_any_folder(tmp_path: Path) -> None:
    assert find_instance() is None
    with service(tmp_path / "data") as instance:
        assert find_instance() == instance
        target = find_target({})
        assert target.variables["REDIS_URL"] == f"unix://{tmp_path}/data/redis.sock"
        assert target.variables["LABEL_STUDIO_API_KEY"] == "key"
    assert find_instance() is None


def test_only_its_owner_reads_the_file_and_a_clean_stop_leaves_no_secret(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with service(folder, PRESET="ssp-sam-224"):
        assert stat.S_IMODE((folder / INSTANCE_FILE).stat().st_mode) == 0o600
    left = Instance.read(folder)
    assert left is not None
    assert left.variables == {"MODEL_DIR": str(folder / "models"), "PRESET": "ssp-sam-224"}
    text = (folder / INSTANCE_FILE).read_text()
    assert not any(f'"{secret}"' in text for secret in SECRETS.values())


def test_the_line_of_a_command_says_where_it_acts_and_holds_no_secret(tmp_path: Path) -> None:
    with service(tmp_path / "data", "demo"):
        line = find_target({}).describe(REDIS_URL="redis://user:geheim@host:1/0", MODEL_DIR="/models")
        assert line == (
            f"Instance {tmp_path}/data (sspsam demo, running): REDIS_URL=redis://host:1/0 MODEL_DIR=/models"
        )


@pytest.mark.parametrize("ended", ["killed", "not locked"])
def test_what_a_crash_leaves_is_not_taken_for_a_running_service(tmp_path: Path, ended: str) -> None:
    folder = tmp_path / "current" / ".sspsam"
    with ExitStack() as stack:
        instance = stack.enter_context(service(folder))
        if ended == "killed":
            with subprocess.Popen(["true"]) as process:
                pass
            Instance(folder, "up", process.pid, instance.variables).write()
        else:
            stack.pop_all()  # the file stays as it is, and this process exists
            (folder / LOCK_FILE).unlink()
            (folder / LOCK_FILE).touch()
        assert find_instance() is None
        found = find_instance(stopped_too=True)
        assert found is not None
        assert not found.is_running
        with pytest.raises(InstanceError, match=r"not running; start it with `sspsam up --data-dir"):
            find_instance(folder)


def test_the_environment_goes_before_the_running_service_and_options_before_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with service(tmp_path / "data", PRESET="ssp-sam-224"):
        monkeypatch.setenv("LABEL_STUDIO_URL", "https://labels.example.com")
        target = find_target({})
        assert target.variables["LABEL_STUDIO_URL"] == "https://labels.example.com"
        assert "LABEL_STUDIO_API_KEY" not in target.variables, "the key of another server"
        monkeypatch.setenv("PRESET", "ssp-sam-336")
        assert find_target({}).variables["PRESET"] == "ssp-sam-336"
        assert find_target({"PRESET": "ssp-sam-test"}).variables["PRESET"] == "ssp-sam-test"


@pytest.mark.parametrize(
    ("name", "value"),
    [("REDIS_URL", "redis://10.0.0.5:6379/0"), ("MODEL_DIR", "/elsewhere"), ("MODEL_DIR", "models")],
)
def test_another_redis_or_model_dir_is_another_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with service(tmp_path / "data", PRESET="ssp-sam-224"):
        target = find_target({})
        assert target.instance is None
        assert "PRESET" not in target.variables
        assert "WEBHOOK_SECRET" not in target.variables
        assert target.describe(REDIS_URL="r").startswith("Set by environment or options: ")


def test_a_data_dir_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://10.0.0.5:6379/0")
    monkeypatch.setenv("MODEL_DIR", "/elsewhere")
    with service(tmp_path / "one"), service(tmp_path / "other"):
        target = find_target({}, tmp_path / "other")
        assert target.variables["REDIS_URL"] == f"unix://{tmp_path}/other/redis.sock"
        assert target.variables["MODEL_DIR"] == str(tmp_path / "other" / "models")


def test_of_several_the_one_of_the_current_folder_is_meant_and_else_a_choice_is_asked_for(
    tmp_path: Path,
) -> None:
    with service(tmp_path / "one"), service(tmp_path / "other"):
        with pytest.raises(InstanceError, match=r"several .*one, .*other. Choose one with --data-dir"):
            find_instance()
        with service(Path(".demo"), "demo"):
            found = find_instance()
            assert found is not None
            assert found.data_dir == tmp_path / "current" / ".demo"


def test_of_a_stopped_service_of_the_current_folder_the_versions_are_found(tmp_path: Path) -> None:
    with service(Path(".demo"), "demo"):
        pass
    assert find_instance() is None
    target = find_target({}, stopped_too=True)
    assert target.variables["MODEL_DIR"] == str(tmp_path / "current" / ".demo" / "models")
    assert "(sspsam demo, stopped)" in target.describe()


def test_a_folder_of_models_without_a_file_counts_as_stopped(tmp_path: Path) -> None:
    (tmp_path / "old" / "models").mkdir(parents=True)
    target = find_target({}, tmp_path / "old", stopped_too=True)
    assert target.variables["MODEL_DIR"] == str(tmp_path / "old" / "models")
    with pytest.raises(InstanceError, match="no instance in"):
        find_target({}, tmp_path / "nothing", stopped_too=True)


@pytest.mark.parametrize("content", ["", "[]", '{"pid": 1}', "\x00"])
def test_a_damaged_file_is_no_instance(content: str) -> None:
    folder = Path(".sspsam")
    with service(folder):
        pass
    (folder / INSTANCE_FILE).write_text(content)
    assert find_instance(stopped_too=True) is None


def test_a_file_that_others_can_read_is_not_believed() -> None:
    with service(Path(".sspsam")):
        (Path(".sspsam") / INSTANCE_FILE).chmod(0o644)
        assert find_instance() is None


def test_models_lie_in_the_users_folder_unless_they_already_lie_here(tmp_path: Path) -> None:
    assert default_model_dir() == tmp_path / "share" / "sspsam" / "models"
    Path("models").mkdir()
    assert default_model_dir() == tmp_path / "share" / "sspsam" / "models", "somebody's own folder"
    (Path("models") / "versions").mkdir()
    assert default_model_dir() == Path("models")
