"""The Redis server packaged with the project."""

import subprocess

from worker.local.redis_program import redis_program


def test_the_packaged_program_is_a_redis_that_can_append() -> None:
    version = subprocess.run(
        [redis_program(), "--version"], capture_output=True, text=True, timeout=20, check=True
    )
    assert "server v=" in version.stdout
    assert "site-packages" in str(redis_program())
