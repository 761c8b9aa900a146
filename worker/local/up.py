"""The parts of the service on one machine: an embedded Redis, the backend, a worker, the scheduler."""

import errno
import fcntl
import hashlib
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import requests
from rich.console import Console

from backend.settings import Settings, url_of
from backend.shared_redis import QUEUES, connect
from backend.web.access import require_secrets
from sspsam.instance import LOCK_FILE, MODELS, published
from sspsam.printable import printable
from worker.local.redis_program import redis_program
from worker.local.supervisor import Part, RunningPart, Supervisor, private_folder
from worker.queueing.healthcheck import all_queues_served

LOOPBACK = "127.0.0.1"
HTTP_TIMEOUT_S = 2.0
PRIVATE = 0o077
"""The umask of parts whose files concern only their owner."""
LOG_LINES_WHEN_SLOW = 3
SOCKET_PATH_MAX_BYTES = 100
"""The path of a unix socket is limited to 107 bytes on Linux, 103 on macOS."""


class CannotStartError(Exception):
    """A precondition is not met and nothing was started; the message says what to do."""


class PortTakenError(CannotStartError):
    """Another program listens on a part's port."""


@dataclass(frozen=True)
class Port:
    """A port that a part listens on, and the option that changes it."""

    number: int
    part: str
    option: str

    def require_free(self, host: str = LOOPBACK) -> None:
        """Raises PortTakenError if it is in use, CannotStartError if the host is none of this machine."""
        try:
            family, *_, address = socket.getaddrinfo(host, self.number, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise CannotStartError(
                    f"the {self.part} cannot listen on {host}: {error.strerror}"
                ) from error
            raise PortTakenError(
                f"port {self.number} on {host}, for the {self.part}, is in use ({error.strerror}). "
                f"Stop the program that listens there, or choose another port with {self.option}."
            ) from error


def redis_part(data_dir: Path, lock: int | None = None) -> tuple[Part, str]:
    """An embedded Redis on a unix socket that persists every change in `data_dir`, for its owner alone.

    Args:
        data_dir: Of Redis.
        lock: Descriptor of the lock of the service's folder, which Redis holds until it ends: a second server
            on the same file would destroy it.

    Returns:
        The part and its URL.
    """
    private_folder(data_dir)
    for path in data_dir.rglob("*"):  # of an earlier release
        path.chmod(0o700 if path.is_dir() else 0o600)
    path = socket_path(data_dir)
    url = f"unix://{quote(str(path))}"
    command = [str(redis_program()), "--port", "0", "--unixsocket", str(path)]
    command += ["--unixsocketperm", "700", "--dir", str(data_dir.resolve())]
    command += ["--appendonly", "yes", "--save", ""]

    def ready() -> bool:
        with connect(url) as connection:
            return bool(connection.ping())

    awaits = f"an answer on {path}"
    part = Part(
        "redis",
        command,
        ready=ready,
        awaits=awaits,
        ready_within_s=30.0,
        umask=PRIVATE,
        holds=() if lock is None else (lock,),
        stop_last=True,
    )
    return part, url


def socket_path(data_dir: Path) -> Path:
    """Path of Redis's socket: next to its data, or in a temporary folder if that path is too long.

    Raises:
        CannotStartError: that folder could be another user's.
    """
    path = data_dir.resolve() / "redis.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_MAX_BYTES:
        return path
    # The same at each start, since it is not removed.
    digest = hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"sspsam-{os.getuid()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & PRIVATE:
        raise CannotStartError(f"{folder} is not a folder of this user alone: remove it")
    return folder / "redis.sock"


def service_parts(environment: Mapping[str, str], redis_url: str, port: int) -> list[Part]:
    """The backend, a worker and the scheduler, each a `sspsam` command.

    Args:
        environment: of all three; HOST, PORT and REDIS_URL are set here.
        redis_url: the shared Redis.
        port: of the backend.
    """
    own = {"PORT": str(port), "REDIS_URL": redis_url, "PYTHONUNBUFFERED": "1"}
    shared = {**environment, "HOST": environment.get("HOST") or LOOPBACK, **own}
    url = url_of(shared["HOST"], port)
    sspsam = [sys.executable, "-P", "-m", "sspsam"]  # -P: no imports from the current folder
    started = datetime.now(UTC)
    return [
        Part(
            "backend",
            [*sspsam, "serve"],
            shared,
            ready=lambda: backend_answers(url),
            awaits=f"an answer from {url}/health",
        ),
        Part(
            "worker",
            [*sspsam, "worker"],
            shared,
            ready=lambda: all_queues_served(redis_url, started),
            awaits=f"a worker for each of the queues {', '.join(QUEUES)}",
        ),
        Part("schedule", [*sspsam, "schedule"], shared),
    ]


def backend_answers(url: str) -> bool:
    """Whether the backend responds on this machine."""
    return requests.get(f"{url}/health", timeout=HTTP_TIMEOUT_S).ok


def wait_and_show(supervisor: Supervisor, console: Console, *names: str) -> None:
    """Waits for parts, showing the remaining ones, and prints a line for each that is ready."""
    waiting = list(names)
    with console.status(f"Starting {', '.join(waiting)}") as status:

        def ready(name: str, seconds: float) -> None:
            waiting.remove(name)
            console.print(f"[green]✓[/green] {name} is ready ({seconds:.0f} s)")
            status.update(f"Starting {', '.join(waiting)}")

        def slow(running: RunningPart, seconds: float) -> None:
            why = printable(running.why_not_ready())
            console.print(f"{running.part.name} is not ready after {seconds:.0f} s: {why}", markup=False)
            for line in running.last_lines()[-LOG_LINES_WHEN_SLOW:]:
                console.print(f"    {printable(line)}", style="dim", markup=False)

        supervisor.wait_until_ready(*names, on_ready=ready, on_slow=slow)


@contextmanager
def data_dir_lock(data_dir: Path) -> Iterator[int]:
    """Locks a data folder for one running service; two would corrupt each other's data.

    Yields:
        The descriptor of the lock. A process that inherits it holds the lock until it ends.

    Raises:
        CannotStartError: another service holds it.
    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    ignored = data_dir / ".gitignore"
    if not ignored.exists():
        ignored.write_text(
            "*\n", encoding="utf-8"
        )  # labels, weights and secrets do not belong in a repository
    with (data_dir / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotStartError(
                f"{data_dir} is in use by another sspsam; see --data-dir. If one was killed, its Redis may "
                "still be ending: try again in a few seconds."
            ) from None
        yield lock.fileno()


def check_up(port: Port) -> None:
    """Checks the preconditions before anything is started or downloaded.

    Raises:
        SettingsError: no credentials are configured for the backend's callers.
        CannotStartError: the port is in use.
    """
    require_secrets(Settings(sam_encoder=""))  # which belongs to a model that may not be selected yet
    port.require_free(os.environ.get("HOST") or LOOPBACK)


def up(data_dir: Path, port: Port, console: Console) -> None:
    """Runs the service until it is interrupted or a part exits. Label Studio is the user's own.

    Args:
        data_dir: Redis's data, the models (unless MODEL_DIR is set) and the logs.
        port: of the backend.
        console: output for the user.

    Raises:
        SettingsError: no credentials are configured for the backend's callers; nothing was started.
        CannotStartError: the port or the folder is in use; nothing was started.
        SupervisorError: a part failed; all others have been stopped.
        KeyboardInterrupt: the user stopped it; all parts have been stopped.
    """
    check_up(port)
    settings = Settings()
    model_dir = os.environ.get("MODEL_DIR") or str(data_dir.resolve() / MODELS)
    environment = {**os.environ, "MODEL_DIR": model_dir}
    with data_dir_lock(data_dir) as lock, Supervisor(data_dir / "logs") as supervisor:
        if environment.get("REDIS_URL"):
            redis_url = settings.redis_url  # with REDIS_PASSWORD
        else:
            redis_url = start_redis(supervisor, data_dir / "redis", console, lock)
        start_service(supervisor, console, environment, redis_url, port.number)
        told_redis = os.environ.get("REDIS_URL") or redis_url  # as set, since commands compare it
        with published(data_dir, "up", instance_variables(environment, told_redis, port.number)):
            url = url_of(os.environ.get("HOST") or LOOPBACK, port.number)
            console.print(f"The backend is at {url} - logs in {data_dir / 'logs'}")
            console.print("Connect a Label Studio project with: sspsam connect --project ID")
            console.print("Ctrl-C stops everything. Data is kept for the next start.")
            supervisor.watch()


def instance_variables(environment: Mapping[str, str], redis_url: str, port: int) -> dict[str, str]:
    """Variables with which commands in other terminals act on the service with this environment."""
    known = {name.upper() for name in Settings.model_fields}
    told = {
        **environment,
        "HOST": environment.get("HOST") or LOOPBACK,
        "REDIS_URL": redis_url,
        "PORT": str(port),
    }
    return {name.upper(): value for name, value in told.items() if value and name.upper() in known}


def start_redis(supervisor: Supervisor, data_dir: Path, console: Console, lock: int | None = None) -> str:
    """Starts the embedded Redis, waits for it, and returns its URL."""
    part, url = redis_part(data_dir, lock)
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
    """Starts the backend, the worker, the scheduler and any further parts in parallel; waits for them."""
    parts = [*more, *service_parts(environment, redis_url, port)]
    supervisor.start(*parts)
    wait_and_show(supervisor, console, *(part.name for part in parts))
