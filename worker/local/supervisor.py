"""Starts the parts of a service as child processes, watches them, and stops them together.

Every part gets its own session, so Ctrl-C in the terminal reaches only the supervisor, which then stops the
parts in order; and its own log file, so the last lines of a failed part can be shown.

Errors:
    SupervisorError
        PartDiedError       a part exited unexpectedly; carries its name, exit status and last log lines
        PartNotReadyError   a part runs but was not ready in time; carries its last log lines
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil

from worker.local.stop_signals import StopSignals

logger = logging.getLogger(__name__)

POLL_S = 0.25
"""Interval between checks of the parts."""
GRACE_S = 8.0
"""Time for the parts to exit on SIGTERM."""
TERM_AGAIN_S = 1.5
"""Interval of repeated SIGTERMs: an RQ worker waits for its job after the first, exits at the second."""
KILL_S = 5.0
"""Time for the system to reap a killed process."""
LAST_LOG_LINES = 15
LAST_LOG_BYTES = 2**16
"""In which they are looked for: logs grow without a limit."""
SLOW_S = 30.0
"""Interval between messages about a slow start."""
MAX_ERROR_LENGTH = 300
"""Maximum length of an error in a message."""


class SupervisorError(Exception):
    """A failure of a part, to be reported to the user."""

    def __init__(self, part: str, what: str, last_lines: Sequence[str]) -> None:
        super().__init__(f"{part} {what}")
        self.part = part
        self.what = what
        self.last_lines = list(last_lines)


class PartDiedError(SupervisorError):
    """A part exited unexpectedly."""


class PartNotReadyError(SupervisorError):
    """A part did not become ready in time."""


@dataclass(frozen=True)
class Part:
    """One child process: how to start it, and how to tell that it is ready."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] | None = None
    """The complete environment of the process; None inherits ours."""
    ready: Callable[[], bool] | None = None
    """Polled until True; an exception means not yet. None: ready as soon as it runs."""
    awaits: str = ""
    """Description of what `ready` checks, shown while the part is not ready."""
    ready_within_s: float = 300.0
    umask: int = -1
    """Permissions that the files it creates do not have; -1: as of this process."""
    holds: tuple[int, ...] = ()
    """File descriptors that it inherits, and so keeps open: a lock is then held until it has ended."""
    stop_last: bool = False
    """Stopped after all others, which need it for a clean exit (Redis)."""


class RunningPart:
    """A started part and its descendant processes."""

    def __init__(self, part: Part, log: Path) -> None:
        self.part = part
        self.log = log
        if log.exists():
            log.replace(log.with_suffix(".previous.log"))
        with open(log, "wb", opener=_private) as output:
            self.process = start_in_own_session(part, output)
        self.family: set[psutil.Process] = set()
        self.last_error = ""
        """The last exception of the readiness check."""
        self.note_family()

    def note_family(self) -> None:
        """Records every descendant: one whose parent has died can no longer be found through it."""
        with suppress(psutil.NoSuchProcess):
            leader = psutil.Process(self.process.pid)
            self.family |= {leader, *leader.children(recursive=True)}

    def survivors(self) -> list[psutil.Process]:
        """The processes of this part that are still running; zombies do not count."""
        self.process.poll()
        for member in list(self.family):
            with suppress(psutil.NoSuchProcess):
                self.family |= set(member.children(recursive=True))
        return [member for member in self.family if is_running(member)]

    def ask_to_end(self) -> None:
        """Sends SIGTERM to the leader, which forwards it; without a leader, to all remaining processes."""
        if self.process.poll() is None:
            self.process.terminate()
            return
        for member in self.survivors():
            with suppress(psutil.NoSuchProcess):
                member.terminate()

    def kill(self) -> None:
        """Kills the remaining processes of the part."""
        left = self.survivors()
        for member in left:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(left, timeout=KILL_S)
        self.process.wait()

    def is_ready(self) -> bool:
        """Whether `ready` returns True; an error, such as a refused connection, means not yet."""
        if self.part.ready is None:
            return True
        try:
            self.last_error = ""
            return self.part.ready()
        except Exception as error:
            self.last_error = " ".join(str(_first_cause(error)).split())[:MAX_ERROR_LENGTH]
            return False

    def why_not_ready(self) -> str:
        """What is awaited, with the last error, if any."""
        awaited = f"waiting for {self.part.awaits}" if self.part.awaits else ""
        return "; ".join(reason for reason in (awaited, self.last_error) if reason)

    def last_lines(self) -> list[str]:
        """The last lines of the part's log."""
        with self.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(size - LAST_LOG_BYTES, 0))
            return log.read().decode(errors="replace").splitlines()[-LAST_LOG_LINES:]


def _first_cause(error: BaseException) -> BaseException:
    """The error at the root: HTTP libraries wrap a refused connection several times."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


class Supervisor:
    """Owns a set of running parts. As a context manager, it stops them all on exit.

    Inside, Ctrl-C, SIGTERM or SIGHUP raises KeyboardInterrupt once; later signals are ignored.

    Args:
        logs: folder of the log files `<part>.log`; the previous log is kept as `<part>.previous.log`.
        grace_s: time for the parts to exit on SIGTERM.
    """

    def __init__(self, logs: Path, grace_s: float = GRACE_S) -> None:
        self.logs = logs
        self.grace_s = grace_s
        self.running: dict[str, RunningPart] = {}
        self.stop_signals = StopSignals()
        self._guardian: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.stop_signals.__enter__()
        with self.stop_signals.held():
            self._guardian = start_guardian()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_signals.ignore()
        self.stop()
        if self._guardian is not None:
            self._guardian.communicate()
        self.stop_signals.__exit__(kind, error, trace)

    def start(self, *parts: Part) -> None:
        """Starts parts without waiting for them; `wait_until_ready` does that."""
        private_folder(self.logs)
        for part in parts:
            with self.stop_signals.held():  # every started process must be recorded, to be stopped
                running = self.running[part.name] = RunningPart(part, self.logs / f"{part.name}.log")
                self._tell_guardian(running.process.pid)

    def _tell_guardian(self, pid: int) -> None:
        if self._guardian is None or self._guardian.stdin is None:
            return  # not entered: nothing stops the parts
        try:
            self._guardian.stdin.write(f"{pid}\n".encode())
            self._guardian.stdin.flush()
        except OSError as error:
            logger.warning("the parts would outlive a killed supervisor: their guardian has gone (%s)", error)

    def wait_until_ready(
        self,
        *names: str,
        on_ready: Callable[[str, float], None] | None = None,
        on_slow: Callable[[RunningPart, float], None] | None = None,
    ) -> None:
        """Returns when all of these parts are ready.

        Args:
            names: started parts.
            on_ready: called with a part's name and the seconds since the call once that part is ready.
            on_slow: called every `SLOW_S` for each part that is not ready, with the seconds since the call.

        Raises:
            PartDiedError: any part exited meanwhile.
            PartNotReadyError: `ready_within_s` of one of them has passed.
        """
        started = time.monotonic()
        waiting = [self.running[name] for name in names]
        next_notice_s = SLOW_S
        while waiting:
            self.check()
            waited_s = time.monotonic() - started
            for running in list(waiting):
                if running.is_ready():
                    waiting.remove(running)
                    if on_ready is not None:
                        on_ready(running.part.name, waited_s)
                elif waited_s > running.part.ready_within_s:
                    raise not_ready(running)
            if waited_s > next_notice_s:
                next_notice_s += SLOW_S
                for running in waiting:
                    if on_slow is not None:
                        on_slow(running, waited_s)
            if waiting:
                time.sleep(POLL_S)
        self.check()

    def check(self) -> None:
        """Checks every part once.

        Raises:
            PartDiedError: one of them has exited.
        """
        for name, running in self.running.items():
            running.note_family()
            status = running.process.poll()
            if status is not None:
                raise PartDiedError(
                    name, f"exited unexpectedly ({describe_exit(status)})", running.last_lines()
                )

    def watch(self) -> None:
        """Watches until a part exits (PartDiedError) or the user interrupts (KeyboardInterrupt)."""
        while True:
            self.check()
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Stops every part and its descendants: SIGTERM first, SIGKILL after `grace_s`."""
        parts = list(self.running.values())
        end([running for running in parts if not running.part.stop_last], self.grace_s)
        end([running for running in parts if running.part.stop_last], self.grace_s)
        self.running.clear()


def private_folder(path: Path) -> None:
    """Makes a folder that only its owner can read; also narrows one of an earlier release."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def start_guardian() -> subprocess.Popen[bytes]:
    """Starts the process that ends the parts if this one is killed; see `worker.local.guardian`."""
    command = [sys.executable, "-P", "-m", "worker.local.guardian"]
    null = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=null, stderr=null, start_new_session=True)


def start_in_own_session(part: Part, output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Starts a part's process with its output in `output` and no input."""
    return subprocess.Popen(
        list(part.command),
        env=None if part.environment is None else dict(part.environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        umask=part.umask,
        pass_fds=part.holds,
    )


def end(parts: Sequence[RunningPart], grace_s: float) -> None:
    """Stops parts in parallel: SIGTERM, repeated every `TERM_AGAIN_S`, and SIGKILL after `grace_s`."""
    for running in parts:
        running.note_family()
    started = time.monotonic()
    asked = float("-inf")
    while (
        left := [running for running in parts if running.survivors()]
    ) and time.monotonic() - started < grace_s:
        if time.monotonic() - asked > TERM_AGAIN_S:
            asked = time.monotonic()
            for running in left:
                running.ask_to_end()
        time.sleep(0.05)
    for running in left:
        logger.warning("%s did not exit on SIGTERM and was killed", running.part.name)
    for running in parts:
        running.kill()


def is_running(process: psutil.Process) -> bool:
    """Whether a process is still running; a zombie is not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def not_ready(running: RunningPart) -> PartNotReadyError:
    """The error for a part whose time has run out."""
    what = f"was not ready after {running.part.ready_within_s:.0f} s"
    if why := running.why_not_ready():
        what += f" ({why})"
    return PartNotReadyError(running.part.name, what, running.last_lines())


def describe_exit(status: int) -> str:
    """Describes an exit status: "exit status 1" or "killed by SIGKILL"."""
    if status >= 0:
        return f"exit status {status}"
    names = {int(number): number.name for number in signal.Signals}
    return f"killed by {names.get(-status, f'signal {-status}')}"
