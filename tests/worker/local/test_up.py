"""`sspsam up` and `sspsam demo`: checks before the start, and locations of files."""

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.shared_redis import connect
from worker.local.demo import DemoOptions, DemoState, check, service_environment
from worker.local.local_label_studio import SETTINGS, Account, label_studio_environment
from worker.local.supervisor import Supervisor
from worker.local.up import (
    LOOPBACK,
    CannotStartError,
    Port,
    PortTakenError,
    check_up,
    data_dir_lock,
    instance_variables,
    redis_part,
    service_parts,
    socket_path,
)


def listening() -> socket.socket:
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as every web server does
    server.bind((LOOPBACK, 0))
    server.listen()
    return server


def test_a_taken_port_is_named_with_its_part_and_its_option() -> None:
    with listening() as server:
        number = server.getsockname()[1]
        with pytest.raises(PortTakenError) as caught:
            Port(number, "backend", "--backend-port").require_free()
    assert f"port {number}" in str(caught.value)
    assert "backend" in str(caught.value)
    assert "--backend-port" in str(caught.value)


def test_a_port_that_was_just_given_back_is_free() -> None:
    with listening() as server:
        number = server.getsockname()[1]
        with socket.create_connection((LOOPBACK, number)) as client:
            accepted, _ = server.accept()
            accepted.close()
            client.recv(1)
    Port(number, "backend", "--backend-port").require_free()


def test_a_folder_serves_one_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with (
        data_dir_lock(folder),
        pytest.raises(CannotStartError, match="data is in use"),
        data_dir_lock(folder),
    ):
        pass
    with data_dir_lock(folder):
        assert folder.is_dir()


def test_the_socket_moves_when_its_path_would_be_too_long(tmp_path: Path) -> None:
    assert socket_path(Path("/data")) == Path("/data/redis.sock")
    deep = tmp_path / ("d" * 100)
    moved = socket_path(deep)
    assert moved.name == "redis.sock"
    assert len(str(moved)) < 100
    assert socket_path(deep) == moved, "the next start leaves no second folder"
    assert socket_path(tmp_path / ("e" * 100)) != moved
    assert moved.parent.stat().st_mode & 0o077 == 0


def test_a_folder_that_another_user_may_have_made_is_not_used_for_the_socket(tmp_path: Path) -> None:
    folder = socket_path(tmp_path / ("d" * 100)).parent
    folder.chmod(0o777)
    with pytest.raises(CannotStartError, match="this user alone"):
        socket_path(tmp_path / ("d" * 100))
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(CannotStartError, match="this user alone"):
        socket_path(tmp_path / ("d" * 100))


@pytest.fixture(autouse=True)
def temporary_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short, since the paths of sockets are limited."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield


def test_an_empty_host_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST", "")
    for name in ("BASIC_AUTH_USER", "BASIC_AUTH_PASS", "WEBHOOK_SECRET"):
        monkeypatch.setenv(name, "secret")
    check_up(Port(two_free_ports()[0], "backend", "--port"))
    [backend, *_] = service_parts({"HOST": ""}, "unix:///r.sock", 9191)
    assert (backend.environment or {})["HOST"] == LOOPBACK
    assert instance_variables({"HOST": ""}, "unix:///r.sock", 9191)["HOST"] == LOOPBACK


def test_the_parts_of_the_service_share_redis_and_the_port() -> None:
    parts = service_parts({"PRESET": "ssp-sam-test", "PORT": "1"}, "unix:///r.sock", 9191)
    assert [part.command[-1] for part in parts] == ["serve", "worker", "schedule"]
    for part in parts:
        assert part.environment is not None
        shared = {"PRESET": "ssp-sam-test", "PORT": "9191", "REDIS_URL": "unix:///r.sock", "HOST": LOOPBACK}
        assert shared.items() <= part.environment.items()


def test_label_studio_does_not_see_our_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "9090")
    monkeypatch.setenv("HOST", "0.0.0.0")
    environment = label_studio_environment(tmp_path, Account("a@example.com", "secret", "0" * 40))
    assert not {"PORT", "HOST"} & set(environment)
    assert SETTINGS.items() <= environment.items()
    assert environment["LABEL_STUDIO_USER_TOKEN"] == "0" * 40


def two_free_ports() -> tuple[int, int]:
    with listening() as one, listening() as other:
        return one.getsockname()[1], other.getsockname()[1]


def options(tmp_path: Path, backend_port: int, label_studio_port: int) -> DemoOptions:
    return DemoOptions(tmp_path, backend_port, label_studio_port, tmp_path / "label-studio")


def test_the_demo_says_that_label_studio_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CannotStartError, match=r"no Label Studio at .*make install"):
        check(options(tmp_path, *two_free_ports()))


def test_the_demo_says_that_two_ports_are_one(tmp_path: Path) -> None:
    number, _ = two_free_ports()
    with pytest.raises(CannotStartError, match="cannot share a port"):
        check(options(tmp_path, number, number))


def test_the_demo_names_the_taken_port_of_label_studio(tmp_path: Path) -> None:
    with listening() as server, pytest.raises(PortTakenError, match="--label-studio-port"):
        check(options(tmp_path, two_free_ports()[0], server.getsockname()[1]))


def test_the_demo_remembers_its_secrets_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "demo.json"
    state = DemoState.load(path)
    state.save(path)
    assert DemoState.load(path) == state
    assert DemoState.load(tmp_path / "other.json") != state
    assert len(state.token) == 40
    assert path.stat().st_mode & 0o077 == 0


def test_the_demo_uses_its_own_parts_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", "https://production.example.com")
    monkeypatch.setenv("MODEL_DIR", "/production")
    monkeypatch.setenv("BASIC_AUTH_PASS", "production")
    monkeypatch.setenv("FINETUNE_AFTER", "3")
    environment = service_environment(options(tmp_path, 9191, 8181), DemoState("0" * 40, "secret"))
    assert environment["LABEL_STUDIO_URL"] == "http://127.0.0.1:8181"
    assert environment["MODEL_DIR"] == str(tmp_path / "models")
    assert environment["BASIC_AUTH_PASS"] not in ("", "production")
    assert environment["FINETUNE_AFTER"] == "3"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:9191"),
        ("0.0.0.0", "http://127.0.0.1:9191"),
        ("192.168.1.5", "http://192.168.1.5:9191"),
        ("::", "http://[::1]:9191"),
        ("fd00::1", "http://[fd00::1]:9191"),
        ("backend.example.com", "http://backend.example.com:9191"),
    ],
)
def test_the_backend_is_awaited_where_it_listens(host: str, url: str) -> None:
    backend = service_parts({"HOST": host}, "unix:///r.sock", 9191)[0]
    assert backend.awaits == f"an answer from {url}/health"


def test_an_address_of_another_machine_is_not_called_a_port_in_use() -> None:
    with pytest.raises(CannotStartError) as caught:
        Port(9191, "backend", "--port").require_free("192.0.2.1")
    assert not isinstance(caught.value, PortTakenError)
    assert "cannot listen on 192.0.2.1" in str(caught.value)


@pytest.mark.parametrize("name", ["data", "C# projects", "50%20off", "what?", "Daten für Ä"])
def test_the_embedded_redis_runs_in_any_folder(tmp_path: Path, name: str) -> None:
    part, url = redis_part(tmp_path / name)
    supervisor = Supervisor(tmp_path / "logs")
    with supervisor:
        supervisor.start(part)
        supervisor.wait_until_ready("redis")
        with connect(url) as connection:
            assert connection.ping()
