"""Parts end with their supervisor, even if it is killed; their files are private."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
from redis import Redis, RedisError

from tests.waiting import wait_until
from worker.local.demo import DATABASE, EMAIL, LABEL_STUDIO, DemoState
from worker.local.guardian import GRACE_S
from worker.local.supervisor import Part, Supervisor, is_running, start_in_own_session
from worker.local.up import CannotStartError, data_dir_lock, redis_part

SUPERVISOR = """
import sys, time
from pathlib import Path
from worker.local.supervisor import Part, Supervisor
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
parent = "import subprocess, sys; print(1, flush=True); subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)"
with Supervisor(Path(sys.argv[1])) as supervisor:
    supervisor.start(Part("stubborn", [sys.executable, "-c", stubborn]), Part("parent", [sys.executable, "-c", parent]))
    print("started", flush=True)
    time.sleep(600)
"""  # noqa: E501


def test_a_killed_supervisor_leaves_no_process(tmp_path: Path) -> None:
    """Neither one that ignores SIGTERM nor a child in a session of its own."""
    command = [sys.executable, "-c", SUPERVISOR, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        leader = psutil.Process(process.pid)
        wait_until(lambda: len(leader.children(recursive=True)) == 4, "both parts run", 20)
        wait_until(
            lambda: all((tmp_path / f"{part}.log").read_bytes() for part in ("stubborn", "parent")), "", 20
        )
        family = leader.children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_running, family)), "all have ended", GRACE_S + 10)


def test_a_supervisor_that_ends_leaves_no_guardian(tmp_path: Path) -> None:
    before = set(psutil.Process().children())
    with Supervisor(tmp_path) as supervisor:
        supervisor.start(Part("part", [sys.executable, "-c", "import time; time.sleep(600)"]))
        assert len(set(psutil.Process().children()) - before) == 2
    assert set(psutil.Process().children()) - before == set()


def test_no_second_redis_runs_on_the_files_of_one_that_was_left(tmp_path: Path) -> None:
    """Its supervisor and the guardian may both have been killed."""
    with data_dir_lock(tmp_path) as lock:
        part, url = redis_part(tmp_path / "redis", lock)
        with (tmp_path / "log").open("wb") as log:
            process = start_in_own_session(part, log)
        wait_until(lambda: responds(url), "Redis responds", 20)
    with Redis.from_url(url) as client:
        client.set("kept", "a correction")
    with pytest.raises(CannotStartError, match="in use"), data_dir_lock(tmp_path):
        pass
    process.terminate()
    process.wait(20)
    with data_dir_lock(tmp_path):
        assert {mode(path) for path in (tmp_path / "redis").rglob("*") if path.is_file()} == {0o600}
        assert {mode(path) for path in (tmp_path / "redis", tmp_path / "redis" / "appendonlydir")} == {0o700}


def responds(url: str) -> bool:
    with suppress(RedisError), Redis.from_url(url) as client:
        return bool(client.ping())
    return False


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_of_an_earlier_release_become_private(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir(mode=0o755)
    (folder / "appendonly.aof").write_bytes(b"")
    redis_part(folder)
    assert (mode(folder), mode(folder / "appendonly.aof")) == (0o700, 0o600)


def test_logs_are_private(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs") as supervisor:
        supervisor.start(Part("part", [sys.executable, "-c", "import time; time.sleep(600)"]))
        assert mode(tmp_path / "logs") == 0o700
        assert mode(tmp_path / "logs" / "part.log") == 0o600


# The demo's state


def label_studio_with(folder: Path, token: str) -> None:
    """What the state needs of Label Studio's database."""
    (folder / LABEL_STUDIO).mkdir()
    with closing(sqlite3.connect(folder / LABEL_STUDIO / DATABASE)) as connection, connection:
        connection.execute("CREATE TABLE htx_user (id INTEGER, email TEXT)")
        connection.execute("CREATE TABLE authtoken_token (key TEXT, user_id INTEGER)")
        connection.execute("INSERT INTO htx_user VALUES (1, ?)", (EMAIL,))
        connection.execute("INSERT INTO authtoken_token VALUES (?, 1)", (token,))


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", "7", '{"token": 5}', '{"unknown": 1}', '{"project": "x"}']
)
def test_a_lost_or_damaged_state_is_made_again_with_label_studios_token(
    tmp_path: Path, content: str | None
) -> None:
    label_studio_with(tmp_path, "a" * 40)
    path = tmp_path / "demo.json"
    if content is not None:
        path.write_text(content)
    state = DemoState.load(path)
    assert state.token == "a" * 40
    assert state.webhook_secret
    assert state.project is None
    state.save(path)
    assert DemoState.load(path) == state
    assert mode(path) == 0o600


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    (tmp_path / LABEL_STUDIO).mkdir()
    (tmp_path / LABEL_STUDIO / DATABASE).write_bytes(b"damaged" * 1000)
    with pytest.raises(CannotStartError, match=DATABASE):
        DemoState.load(tmp_path / "demo.json")
