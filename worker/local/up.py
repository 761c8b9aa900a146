"""The parts of the service on one machine: an embedded Redis, the backend, a worker, the schedule."""

import fcntl
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import requests
from rich.console import Console

from backend.settings import Settings
from backend.shared_redis import QUEUES, connect
from backend.web.access import require_secrets
from sspsam.instance import LOCK_FILE, MODELS, published
from worker.local.redis_program import redis_program
from worker.local.supervisor import Part, RunningPart, Supervisor
from worker.queueing.healthcheck import all_queues_served

LOOPBACK = "127.0.0.1"
HTTP_TIMEOUT_S = 2.0
LOG_LINES_WHEN_SLOW = 3
SOCKET_PATH_MAX_BYTES = 100
"""A unix socket's path may have 107 bytes on Linux, 103 on macOS."""


class CannotStartError(Exception):
    """Something stands in the way before anything was started; the message says what to do."""


class PortTakenError(CannotStartError):
    """Another program listens where a part wants to."""


@dataclass(frozen=True)
class Port:
    """A port that a part will listen on, and the option that chooses another."""

    number: int
    part: str
    option: str

    def require_free(self, host: str = LOOPBACK) -> None:
        """Raises PortTakenError if something listens there."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, self.number))
            except OSError as error:
                raise PortTakenError(
                    f"port {self.number} on {host}, for the {self.part}, is taken ({error.strerror}). "
                    f"Stop what listens there, or choose another port with {self.option}."
                ) from error


def redis_part(data_dir: Path) -> tuple[Part, str]:
    """An embedded Redis on a unix socket, which writes every change to `data_dir`.

    Returns:
        The part, and the URL that reaches it.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    path = socket_path(data_dir)
    url = f"unix://{path}"
    command = [str(redis_program()), "--port", "0", "--unixsocket", str(path)]
    command += ["--unixsocketperm", "700", "--dir", str(data_dir.resolve())]
    command += ["--appendonly", "yes", "--save", ""]

    def ready() -> bool:
        with connect(url) as connection:
            return bool(connection.ping())

    awaits = f"an answer on {path}"
    return Part("redis", command, ready=ready, awaits=awaits, ready_within_s=30.0, stop_last=True), url


def socket_path(data_dir: Path) -> Path:
    """Where Redis's socket goes: beside its data, or in a short temporary folder if that path is too long."""
    path = data_dir.resolve() / "redis.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_MAX_BYTES:
        return path
    return Path(tempfile.mkdtemp(prefix="sspsam-")) / "redis.sock"


def service_parts(environment: Mapping[str, str], redis_url: str, port: int) -> list[Part]:
    """The backend, a worker and the schedule, each `sspsam` with one word.

    The worker leaves one core to those who wait for an answer: two processes with a thread for every core
    slow each other down many times over, as the threads of one wait for each other.

    Args:
        environment: of all three; HOST, PORT and REDIS_URL are set here.
        redis_url: the Redis that they share.
        port: of the backend.
    """
    own = {"PORT": str(port), "REDIS_URL": redis_url, "PYTHONUNBUFFERED": "1"}
    shared = {"HOST": LOOPBACK, **environment, **own}
    spare_core = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) - 1))}
    sspsam = [sys.executable, "-P", "-m", "sspsam"]  # -P: nothing is imported from the current folder
    started = datetime.now(UTC)
    return [
        Part(
            "backend",
            [*sspsam, "serve"],
            shared,
            ready=lambda: backend_answers(port),
            awaits=f"an answer from http://{LOOPBACK}:{port}/health",
        ),
        Part(
            "worker",
            [*sspsam, "worker"],
            {**spare_core, **shared},
            ready=lambda: all_queues_served(redis_url, started),
            awaits=f"a worker for each of the queues {', '.join(QUEUES)}",
        ),
        Part("schedule", [*sspsam, "schedule"], shared),
    ]


def backend_answers(port: int) -> bool:
    """Whether the backend answers on this machine."""
    return requests.get(f"http://{LOOPBACK}:{port}/health", timeout=HTTP_TIMEOUT_S).ok


def wait_and_show(supervisor: Supervisor, console: Console, *names: str) -> None:
    """Waits for parts, showing which are still awaited, and prints a line for each that is ready."""
    waiting = list(names)
    with console.status(f"Starting {', '.join(waiting)}") as status:

        def ready(name: str, seconds: float) -> None:
            waiting.remove(name)
            console.print(f"[green]✓[/green] {name} is ready ({seconds:.0f} s)")
            status.update(f"Starting {', '.join(waiting)}")

        def slow(running: RunningPart, seconds: float) -> None:
            console.print(
                f"{running.part.name} is not ready after {seconds:.0f} s: {running.why_not_ready()}"
            )
            for line in running.last_lines()[-LOG_LINES_WHEN_SLOW:]:
                console.print(f"    {line}", style="dim", markup=False)

        supervisor.wait_until_ready(*names, on_ready=ready, on_slow=slow)


@contextmanager
def data_dir_lock(data_dir: Path) -> Iterator[None]:
    """Holds a data folder for one running service; two would spoil each other's data.

    Raises:
        CannotStartError: another one holds it.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    ignored = data_dir / ".gitignore"
    if not ignored.exists():
        ignored.write_text("*\n", encoding="utf-8")  # labels, weights and secrets are no part of a repository
    with (data_dir / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotStartError(f"{data_dir} is in use by another sspsam; see --data-dir") from None
        yield


def up(data_dir: Path, port: Port, console: Console) -> None:
    """Runs the service until it is interrupted or a part ends. Label Studio is the user's own.

    Args:
        data_dir: Redis's data, the models (unless MODEL_DIR is set) and the logs.
        port: of the backend.
        console: where the person looks.

    Raises:
        SettingsError: callers of the backend would have nothing to show; nothing was started.
        CannotStartError: the port or the folder is in use; nothing was started.
        SupervisorError: a part failed; all others have been ended.
        KeyboardInterrupt: the person ended it; all parts have been ended.
    """
    settings = Settings()
    require_secrets(settings)
    port.require_free(os.environ.get("HOST", LOOPBACK))
    model_dir = os.environ.get("MODEL_DIR") or str(data_dir.resolve() / MODELS)
    environment = {**os.environ, "MODEL_DIR": model_dir}
    with data_dir_lock(data_dir), Supervisor(data_dir / "logs") as supervisor:
        if environment.get("REDIS_URL"):
            redis_url = settings.redis_url  # with REDIS_PASSWORD
        else:
            redis_url = start_redis(supervisor, data_dir / "redis", console)
        start_service(supervisor, console, environment, redis_url, port.number)
        told_redis = os.environ.get("REDIS_URL") or redis_url  # as it is set, for commands to compare
        with published(data_dir, "up", instance_variables(environment, told_redis, port.number)):
            console.print(f"The backend is at http://{LOOPBACK}:{port.number} - logs in {data_dir / 'logs'}")
            console.print("Connect a Label Studio project with: sspsam connect --project ID")
            console.print("Ctrl-C ends everything.")
            supervisor.watch()


def instance_variables(environment: Mapping[str, str], redis_url: str, port: int) -> dict[str, str]:
    """What commands in other terminals need, to act on a service whose parts have this environment."""
    known = {name.upper() for name in Settings.model_fields}
    told = {"HOST": LOOPBACK, **environment, "REDIS_URL": redis_url, "PORT": str(port)}
    return {name.upper(): value for name, value in told.items() if value and name.upper() in known}


def start_redis(supervisor: Supervisor, data_dir: Path, console: Console) -> str:
    """Starts the embedded Redis, waits for it, and returns its URL."""
    part, url = redis_part(data_dir)
    supervisor.start(part)
    wait_and_show(supervisor, console, part.name)
    return url


def start_service(
    supervisor: Supervisor,
    console: Console,
    environment: Mapping[str, str],
    redis_url: str,
    port: int,
    *more: Part,
) -> None:
    """Starts the backend, the worker, the schedule and any more parts side by side, and waits for them."""
    parts = [*more, *service_parts(environment, redis_url, port)]
    supervisor.start(*parts)
    wait_and_show(supervisor, console, *(part.name for part in parts))
