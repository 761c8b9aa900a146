"""The supervisor with real processes: readiness, crashes, last log lines, and no process left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import requests

from worker.local.supervisor import Part, PartDiedError, PartNotReadyError, RunningPart, Supervisor

SLEEPER = "import time; time.sleep(120)"
PARENT_OF_DETACHED = (
    "import pathlib, subprocess, sys, time\n"
    "command = [sys.executable, '-c', 'import time; time.sleep(120)']\n"
    "child = subprocess.Popen(command, start_new_session=True)\n"
    "pathlib.Path(sys.argv[1]).write_text(str(child.pid))\n"
    "time.sleep(120)\n"
)
DEAF = (
    "import pathlib, signal, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "pathlib.Path(sys.argv[1]).write_text('deaf')\n"
    "time.sleep(120)\n"
)


def python(name: str, code: str, *arguments: str, ready: Callable[[], bool] | None = None) -> Part:
    return Part(name, [sys.executable, "-c", code, *arguments], ready=ready, ready_within_s=20.0)


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def watch_until_death(supervisor: Supervisor, deadline_s: float = 20.0) -> PartDiedError:
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        try:
            supervisor.check()
        except PartDiedError as error:
            return error
        time.sleep(0.05)
    raise AssertionError("no part died")


def test_ends_every_part_on_the_way_out(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs") as supervisor:
        supervisor.start(python("one", SLEEPER), python("two", SLEEPER))
        pids = [running.process.pid for running in supervisor.running.values()]
        assert not any(has_ended(pid) for pid in pids)
    assert all(has_ended(pid) for pid in pids)


def test_leaves_other_processes_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEPER]) as bystander:
        with Supervisor(tmp_path / "logs") as supervisor:
            supervisor.start(python("one", SLEEPER))
        assert bystander.poll() is None
        bystander.kill()


def test_ends_descendants_that_left_the_session(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with Supervisor(tmp_path / "logs") as supervisor:
        supervisor.start(python("parent", PARENT_OF_DETACHED, str(pid_file), ready=pid_file.exists))
        supervisor.wait_until_ready("parent")
        supervisor.check()
    assert has_ended(int(pid_file.read_text()))


def test_ends_descendants_whose_parent_was_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with Supervisor(tmp_path / "logs") as supervisor:
        supervisor.start(python("parent", PARENT_OF_DETACHED, str(pid_file), ready=pid_file.exists))
        supervisor.wait_until_ready("parent")
        supervisor.check()
        supervisor.running["parent"].process.kill()
        assert watch_until_death(supervisor).what == "exited unexpectedly (killed by SIGKILL)"
    assert has_ended(int(pid_file.read_text()))


def test_kills_a_part_that_does_not_listen(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with Supervisor(tmp_path / "logs", grace_s=0.5) as supervisor:
        supervisor.start(python("deaf", DEAF, str(marker), ready=marker.exists))
        supervisor.wait_until_ready("deaf")
        pid = supervisor.running["deaf"].process.pid
    assert has_ended(pid)


def test_a_death_names_the_part_and_its_last_words(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs") as supervisor:
        supervisor.start(python("fine", SLEEPER), python("broken", "raise SystemExit('no such model')"))
        error = watch_until_death(supervisor)
    assert error.part == "broken"
    assert "exit status 1" in str(error)
    assert error.last_lines == ["no such model"]


def test_waiting_for_one_part_notices_the_death_of_another(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs") as supervisor:
        supervisor.start(
            python("slow", SLEEPER, ready=lambda: False), python("broken", "raise SystemExit(3)")
        )
        with pytest.raises(PartDiedError, match=r"broken exited unexpectedly \(exit status 3\)"):
            supervisor.wait_until_ready("slow")


def test_a_part_that_never_answers_is_named(tmp_path: Path) -> None:
    part = Part("mute", [sys.executable, "-c", SLEEPER], ready=lambda: False, ready_within_s=0.3)
    with Supervisor(tmp_path / "logs") as supervisor:
        supervisor.start(part)
        with pytest.raises(PartNotReadyError, match="mute was not ready after 0 s"):
            supervisor.wait_until_ready("mute")


def test_what_a_slow_part_waits_for_is_told_meanwhile_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> bool:
        raise ConnectionRefusedError("nothing listens on port 1")

    monkeypatch.setattr("worker.local.supervisor.SLOW_S", 0.2)
    command = ["sh", "-c", "echo loading; exec sleep 120"]
    part = Part("mute", command, ready=refuse, awaits="an answer from port 1", ready_within_s=1.6)
    told: list[str] = []
    with Supervisor(tmp_path / "logs") as supervisor:
        supervisor.start(part)
        with pytest.raises(PartNotReadyError) as caught:
            supervisor.wait_until_ready("mute", on_slow=lambda slow, _: told.append(slow.why_not_ready()))
    why = "waiting for an answer from port 1; nothing listens on port 1"
    assert str(caught.value) == f"mute was not ready after 2 s ({why})"
    assert caught.value.last_lines == ["loading"]
    assert len(told) > 1
    assert set(told) == {why}


def test_a_refused_connection_is_told_without_the_http_librarys_wrapping(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound, and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/health"
        command = [sys.executable, "-c", SLEEPER]
        part = Part("one", command, ready=lambda: requests.get(url, timeout=5).ok, ready_within_s=0.5)
        with Supervisor(tmp_path / "logs") as supervisor:
            supervisor.start(part)
            with pytest.raises(PartNotReadyError, match="Connection refused") as caught:
                supervisor.wait_until_ready("one")
    assert "HTTPConnection" not in str(caught.value)


def test_errors_of_a_readiness_question_mean_not_yet(tmp_path: Path) -> None:
    answers = iter([ConnectionRefusedError("not yet"), None])

    def ready() -> bool:
        answer = next(answers)
        if answer is not None:
            raise answer
        return True

    with Supervisor(tmp_path / "logs") as supervisor:
        supervisor.start(python("one", SLEEPER, ready=ready))
        supervisor.wait_until_ready("one")
    assert next(answers, "asked twice") == "asked twice"


def test_keeps_the_log_of_the_start_before(tmp_path: Path) -> None:
    for word in ("first", "second"):
        with Supervisor(tmp_path) as supervisor:
            supervisor.start(python("talker", f"print('{word}')"))
            watch_until_death(supervisor)
    assert (tmp_path / "talker.log").read_text() == "second\n"
    assert (tmp_path / "talker.previous.log").read_text() == "first\n"


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def stop_signal(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal that ends programs, even where the tests run behind nohup, which ignores some."""
    number: signal.Signals = request.param
    before = signal.signal(number, signal.default_int_handler)
    yield number
    signal.signal(number, before)


def stopped_by(stop_signal: signal.Signals, folder: Path) -> int:
    """Runs a part that sends a signal to its supervisor, until that ends; returns the part's process id."""
    started: list[int] = []
    is_watched = folder / "watched"
    until = f"iter(pathlib.Path({str(is_watched)!r}).exists, True)"
    wait = f"import pathlib, time; [time.sleep(0.02) for _ in {until}]"
    send = f"import os; os.kill({os.getpid()}, {int(stop_signal)}); {SLEEPER}"

    def run(supervisor: Supervisor) -> None:
        supervisor.start(python("sender", f"{wait}; {send}"))
        started.append(supervisor.running["sender"].process.pid)
        is_watched.touch()
        supervisor.watch()

    with pytest.raises(KeyboardInterrupt), Supervisor(folder) as supervisor:
        run(supervisor)
    return started[0]


def test_stop_signals_end_the_watch(tmp_path: Path, stop_signal: signal.Signals) -> None:
    assert has_ended(stopped_by(stop_signal, tmp_path))


def test_a_second_stop_signal_does_not_disturb_the_ending(
    tmp_path: Path, stop_signal: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Supervisor.stop

    def stop_with_another_signal(supervisor: Supervisor) -> None:
        signal.raise_signal(stop_signal)
        stop(supervisor)

    monkeypatch.setattr(Supervisor, "stop", stop_with_another_signal)
    assert has_ended(stopped_by(stop_signal, tmp_path))


def test_a_part_that_is_being_started_is_ended_too(
    tmp_path: Path, stop_signal: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = []
    note_family = RunningPart.note_family

    def interrupted(running: RunningPart) -> None:
        if not pids:
            pids.append(running.process.pid)
            signal.raise_signal(stop_signal)
        note_family(running)

    monkeypatch.setattr(RunningPart, "note_family", interrupted)
    with pytest.raises(KeyboardInterrupt), Supervisor(tmp_path) as supervisor:
        supervisor.start(python("sleeper", SLEEPER))
    assert has_ended(pids[0])


def test_stop_signals_are_as_before_once_all_has_ended(tmp_path: Path, stop_signal: signal.Signals) -> None:
    before = signal.getsignal(stop_signal)
    with Supervisor(tmp_path):
        assert signal.getsignal(stop_signal) != before
    assert signal.getsignal(stop_signal) == before


def test_the_part_that_ends_last_outlives_the_others(tmp_path: Path) -> None:
    note = tmp_path / "note"
    on_term = (
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n"
        "    with open(sys.argv[1], 'a') as note: print(sys.argv[2], file=note)\n"
        "    raise SystemExit\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "pathlib.Path(sys.argv[1] + sys.argv[2]).touch()\n"
        "time.sleep(120)\n"
    )
    with Supervisor(tmp_path / "logs") as supervisor:
        for name, last in (("redis", True), ("worker", False)):
            marker = tmp_path / f"note{name}"
            command = [sys.executable, "-c", on_term, str(note), name]
            supervisor.start(Part(name, command, ready=marker.exists, stop_last=last))
            supervisor.wait_until_ready(name)
    assert note.read_text().split() == ["worker", "redis"]
