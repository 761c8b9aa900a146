"""Which running service a command acts on, and how it is reached.

`sspsam up` and `sspsam demo` describe themselves in a file of their data folder, `instance.json`, which only
its owner can read: the variables of their parts, secrets included. A link in the user's state folder lets
commands find it from any folder. A clean stop leaves only the variables of the versions in it. After a crash,
the file is recognised as stale: its process does not exist, or the folder is not locked.

A variable is taken from the first of these that has it: the command's options, the instance that `--data-dir`
names, the environment, the running instance, the default.

Errors:
    InstanceError: (ValueError) `--data-dir` names none, or several run.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sspsam.files import replacing

INSTANCE_FILE = "instance.json"
LOCK_FILE = "lock"
"""Of a data folder; locked by the service that runs on it."""
USUAL_FOLDERS = (".sspsam", ".demo")
"""Data folders of `sspsam up` and `sspsam demo`, unless they are told otherwise."""
MODELS = "models"
"""Of a data folder, where MODEL_DIR is unless it is set."""
IDENTITY = ("REDIS_URL", "MODEL_DIR", "VERSIONS_URL")
"""Where one of these is set to something else, another service is meant."""
PATHS = ("MODEL_DIR", "WEIGHTS")
OF_THE_VERSIONS = ("MODEL_DIR", "VERSIONS_URL", "MODEL_LINES", "PRESET", "SAM_ENCODER", "WEIGHTS")
"""What a stopped instance still says."""
BELONG_TOGETHER = (
    ("MODEL_DIR", "VERSIONS_URL"),
    ("PRESET", "SAM_ENCODER", "WEIGHTS"),
    ("REDIS_URL", "REDIS_PASSWORD"),
    ("LABEL_STUDIO_URL", "LABEL_STUDIO_HOST", "LABEL_STUDIO_API_KEY"),  # a key goes to no other server
    ("HOST", "PORT", "PUBLIC_URL"),
    ("BASIC_AUTH_USER", "BASIC_AUTH_PASS", "VIEWER_PASS"),
)
"""One of these from one place, none from a place that comes after it."""


class InstanceError(ValueError):
    """It is not clear which service a command is to act on; the message says what to do."""


@dataclass(frozen=True)
class Instance:
    """A service that was started on this machine by `sspsam up` or `sspsam demo`."""

    data_dir: Path
    command: str = "up"
    pid: int = 0
    """Of the process that watches the parts; 0 once it has stopped."""
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_running(self) -> bool:
        return self.pid > 0 and _exists(self.pid) and _is_locked(self.data_dir)

    def fits(self, told: Mapping[str, str]) -> bool:
        """Whether it can be meant where these variables are set."""
        return all(told.get(name, own) == own for name, own in self.variables.items() if name in IDENTITY)

    @classmethod
    def read(cls, data_dir: Path) -> Instance | None:
        """What a data folder says of itself; None if no service has run there.

        A file that others could have written or read is not believed.
        """
        data_dir = data_dir.resolve()
        if (variables := _read_private(data_dir / INSTANCE_FILE)) is not None:
            return cls(**{**variables, "data_dir": data_dir})
        models = data_dir / MODELS  # of an instance that wrote no such file
        return cls(data_dir, variables={"MODEL_DIR": str(models)}) if models.is_dir() else None

    def write(self) -> None:
        """Replaces the folder's file."""
        text = json.dumps({**asdict(self), "data_dir": str(self.data_dir)}, indent=2)
        with replacing(self.data_dir / INSTANCE_FILE) as staged:
            handle = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text + "\n")


@contextmanager
def published(data_dir: Path, command: str, variables: Mapping[str, str]) -> Iterator[None]:
    """Lets commands find a service while it runs, and its versions afterwards.

    Args:
        data_dir: locked by the caller.
        command: that runs the service.
        variables: of its parts.
    """
    variables = absolute(variables)
    running = Instance(data_dir.resolve(), command, os.getpid(), variables)
    running.write()
    _register(running.data_dir)
    try:
        yield
    finally:
        kept = {name: variables[name] for name in OF_THE_VERSIONS if name in variables}
        Instance(running.data_dir, command, 0, kept).write()


def find_instance(
    data_dir: Path | None = None, stopped_too: bool = False, told: Mapping[str, str] | None = None
) -> Instance | None:
    """The service that a command acts on; None if there is none.

    Args:
        data_dir: of the service, if it is named.
        stopped_too: whether one that has stopped will do: the one named, or of the current folder.
        told: variables that are set otherwise: a service that has others of `IDENTITY` is not the one meant.

    Raises:
        InstanceError: there is none in `data_dir`, or several run and none is of the current folder.
    """
    if data_dir is not None:
        return _named(data_dir, stopped_too)
    folders = {folder.resolve() for folder in map(Path, USUAL_FOLDERS) if folder.is_dir()}
    here = [instance for folder in sorted(folders) if (instance := Instance.read(folder))]
    elsewhere = [instance for folder in _registered() if (instance := Instance.read(folder))]
    here += [
        instance
        for instance in elsewhere
        if instance.data_dir.parent == Path.cwd() and instance.data_dir not in folders
    ]
    here, elsewhere = (
        [instance for instance in known if instance.fits(told or {})] for known in (here, elsewhere)
    )
    for known in (here, elsewhere):
        running = [instance for instance in known if instance.is_running]
        if len(running) > 1:
            names = ", ".join(sorted(str(instance.data_dir) for instance in running))
            raise InstanceError(f"several instances are running: {names}. Choose one with --data-dir.")
        if running:
            return running[0]
    if stopped_too and here:
        return max(here, key=lambda instance: instance.data_dir.stat().st_mtime)
    return None


def _read_private(path: Path) -> dict[str, Any] | None:
    """The fields of an instance; None without a file that is its owner's alone."""
    try:
        with path.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            content = json.load(file)
    except (OSError, ValueError):
        return None
    is_private = status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o077
    is_known = isinstance(content, dict) and content.keys() == {part.name for part in fields(Instance)}
    return content if is_private and is_known else None


def _named(data_dir: Path, stopped_too: bool) -> Instance:
    instance = Instance.read(data_dir)
    if instance is None:
        raise InstanceError(f"there is no instance in {data_dir}: no `sspsam up` or `demo` has run there")
    if not (stopped_too or instance.is_running):
        start = f"sspsam {instance.command} --data-dir {data_dir}"
        raise InstanceError(f"the instance in {data_dir} is not running; start it with `{start}`")
    return instance


@dataclass(frozen=True)
class Target:
    """What a command acts on."""

    variables: Mapping[str, str]
    """Of the environment, with those of the instance and the options."""
    instance: Instance | None

    def describe(self, **places: object) -> str:
        """One line without secrets: the instance, and where some variables point.

        Args:
            places: Values of variables, by their names.
        """
        where = " ".join(f"{name}={shown(str(value))}" for name, value in places.items())
        if self.instance is not None:
            state = "running" if self.instance.is_running else "stopped"
            return f"Instance {self.instance.data_dir} (sspsam {self.instance.command}, {state}): {where}"
        is_set = self.variables.keys() & {*places, "MODEL_DIR", "REDIS_URL"}
        return f"{'Set by environment or options' if is_set else 'No instance is running, defaults'}: {where}"


def find_target(
    options: Mapping[str, object], data_dir: Path | None = None, stopped_too: bool = False
) -> Target:
    """Finds what a command acts on: the first of options, `data_dir`, environment and running instance.

    Args:
        options: Variables that the command line gives; None for those that it does not.
        data_dir: As for `find_instance`.
        stopped_too: As for `find_instance`.

    Raises:
        InstanceError: as `find_instance` says.
    """
    environment = absolute({name.upper(): value for name, value in os.environ.items() if value})
    given = absolute({name: str(value) for name, value in options.items() if value})
    if data_dir is not None:
        instance = find_instance(data_dir, stopped_too)
        assert instance is not None
        return Target(_over(given, _over(instance.variables, environment)), instance)
    explicit = environment | given
    instance = find_instance(None, stopped_too, explicit)
    return Target(_over(explicit, instance.variables) if instance else explicit, instance)


def _over(first: Mapping[str, str], then: Mapping[str, str]) -> dict[str, str]:
    """Both together; where the first has a variable, it wins with all that belongs to it."""
    taken = {name for group in BELONG_TOGETHER if first.keys() & set(group) for name in group}
    return {name: value for name, value in then.items() if name not in taken} | dict(first)


def shown(value: str) -> str:
    """A place without the name and password that an address may hold."""
    parts = urlsplit(value)
    if "@" not in parts.netloc:
        return value
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def absolute(variables: Mapping[str, str]) -> dict[str, str]:
    """The same, with paths that mean the same in every current folder."""
    return {
        name: str(Path(value).absolute()) if name in PATHS else value for name, value in variables.items()
    }


def default_model_dir() -> Path:
    """MODEL_DIR unless it is set: `models` in the current folder if it is one of ours, else the user's."""
    here = Path(MODELS)
    if any((here / part).is_dir() for part in ("versions", "records", "runs", "weights")):
        return here
    return user_folder("XDG_DATA_HOME", "~/.local/share") / MODELS


def user_folder(variable: str, usual: str) -> Path:
    """Our part of one of the user's folders, after the XDG base directory specification."""
    return Path(os.environ.get(variable) or usual).expanduser() / "sspsam"


def _register(data_dir: Path) -> None:
    """Makes an instance known to the commands of this user; where that fails, --data-dir finds it."""
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    with suppress(OSError):
        folder = _registry()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(data_dir, target_is_directory=True)


def _registered() -> list[Path]:
    """Data folders of this user's instances. What no longer exists is forgotten."""
    folders = []
    with suppress(OSError):
        for link in sorted(_registry().iterdir()):
            if link.is_dir():
                folders.append(link.resolve())
            else:
                link.unlink(missing_ok=True)
    return folders


def _registry() -> Path:
    return user_folder("XDG_STATE_HOME", "~/.local/state") / "instances"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_locked(data_dir: Path) -> bool:
    """Whether a service holds the folder's lock. A shared lock is tried, which leaves the service's alone."""
    try:
        with (data_dir / LOCK_FILE).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
