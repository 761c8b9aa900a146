"""Starts the parts of a service as child processes, watches them, and ends them all together.

Every part gets a session of its own, so that Ctrl-C in the terminal reaches only the supervisor, which then
ends the parts in order; and a log file of its own, so that what a failed part said last can be shown.

Errors:
    SupervisorError
        PartDiedError       a part ended by itself; carries its name, exit status and last log lines
        PartNotReadyError   a part runs, but did not answer in time; carries its last log lines
"""

import logging
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

import psutil

logger = logging.getLogger(__name__)

POLL_S = 0.25
"""How often the parts are looked at."""
GRACE_S = 8.0
"""How long the parts may take to end by themselves when asked."""
TERM_AGAIN_S = 1.5
"""When SIGTERM is repeated: an RQ worker waits for its job after the first and ends at the second."""
KILL_S = 5.0
"""How long the system may take to clear away a killed process."""
LAST_LOG_LINES = 15
SLOW_S = 30.0
"""How often a start that takes longer says what it waits for."""
MAX_ERROR_LENGTH = 300
"""Characters of an error in a message."""


class SupervisorError(Exception):
    """Something about a part that the person who started it has to know."""

    def __init__(self, part: str, what: str, last_lines: Sequence[str]) -> None:
        super().__init__(f"{part} {what}")
        self.part = part
        self.what = what
        self.last_lines = list(last_lines)


class PartDiedError(SupervisorError):
    """A part ended although nobody asked it to."""


class PartNotReadyError(SupervisorError):
    """A part did not become ready in time."""


@dataclass(frozen=True)
class Part:
    """One child process: how to start it, and how to tell that it is ready."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] | None = None
    """The whole environment of the process; None inherits ours."""
    ready: Callable[[], bool] | None = None
    """Asked again and again until True; an exception counts as not yet. None: ready as soon as it runs."""
    awaits: str = ""
    """What `ready` looks for, in words: said while the part is not ready."""
    ready_within_s: float = 300.0
    stop_last: bool = False
    """Ended after all others, which need it to end cleanly (Redis)."""


class RunningPart:
    """A started part and the processes that came from it."""

    def __init__(self, part: Part, log: Path) -> None:
        self.part = part
        self.log = log
        if log.exists():
            log.replace(log.with_suffix(".previous.log"))
        with log.open("wb") as output:
            self.process = start_in_own_session(part, output)
        self.family: set[psutil.Process] = set()
        self.last_error = ""
        """Of the readiness question."""
        self.note_family()

    def note_family(self) -> None:
        """Remembers every descendant seen, since one whose parent died can no longer be found by descent."""
        with suppress(psutil.NoSuchProcess):
            leader = psutil.Process(self.process.pid)
            self.family |= {leader, *leader.children(recursive=True)}

    def survivors(self) -> list[psutil.Process]:
        """The processes of this part that still run; zombies do not count."""
        self.process.poll()
        for member in list(self.family):
            with suppress(psutil.NoSuchProcess):
                self.family |= set(member.children(recursive=True))
        return [member for member in self.family if is_running(member)]

    def ask_to_end(self) -> None:
        """SIGTERM to the leader, which passes it on in its own way; without a leader, to all that is left."""
        if self.process.poll() is None:
            self.process.terminate()
            return
        for member in self.survivors():
            with suppress(psutil.NoSuchProcess):
                member.terminate()

    def kill(self) -> None:
        """Ends what is left of the part, at once."""
        left = self.survivors()
        for member in left:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(left, timeout=KILL_S)
        self.process.wait()

    def is_ready(self) -> bool:
        """Whether `ready` says yes; an error, such as a refused connection, means not yet."""
        if self.part.ready is None:
            return True
        try:
            self.last_error = ""
            return self.part.ready()
        except Exception as error:
            self.last_error = " ".join(str(error).split())[:MAX_ERROR_LENGTH]
            return False

    def why_not_ready(self) -> str:
        """What is awaited, and the error that came instead, if one did."""
        awaited = f"waiting for {self.part.awaits}" if self.part.awaits else ""
        return "; ".join(reason for reason in (awaited, self.last_error) if reason)

    def last_lines(self) -> list[str]:
        """The end of the part's log."""
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LOG_LINES:]


class Supervisor:
    """Owns a set of running parts. As a context manager it ends them all on the way out.

    Inside, Ctrl-C, SIGTERM or SIGHUP raises KeyboardInterrupt, once; further ones do not disturb the ending.

    Args:
        logs: folder of the log files, one `<part>.log` each; the one before is kept as `<part>.previous.log`.
        grace_s: how long the parts may take to end by themselves when they are asked to.
    """

    def __init__(self, logs: Path, grace_s: float = GRACE_S) -> None:
        self.logs = logs
        self.grace_s = grace_s
        self.running: dict[str, RunningPart] = {}
        self.stop_signals = StopSignals()

    def __enter__(self) -> Self:
        self.stop_signals.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_signals.ignore()
        self.stop()
        self.stop_signals.__exit__(kind, error, trace)

    def start(self, *parts: Part) -> None:
        """Starts parts without waiting for them; `wait_until_ready` does that."""
        self.logs.mkdir(parents=True, exist_ok=True)
        for part in parts:
            with self.stop_signals.held():  # what has been started must be known, to be ended
                self.running[part.name] = RunningPart(part, self.logs / f"{part.name}.log")

    def wait_until_ready(
        self,
        *names: str,
        on_ready: Callable[[str, float], None] | None = None,
        on_slow: Callable[[RunningPart, float], None] | None = None,
    ) -> None:
        """Returns when all of these parts answer.

        Args:
            names: of parts that were started.
            on_ready: called with a part's name and the seconds since the call, when that part is ready.
            on_slow: called every `SLOW_S` for each part that is not ready, with the seconds since the call.

        Raises:
            PartDiedError: one of all parts ended meanwhile.
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
        """Looks at every part once.

        Raises:
            PartDiedError: one of them has ended.
        """
        for name, running in self.running.items():
            running.note_family()
            status = running.process.poll()
            if status is not None:
                raise PartDiedError(name, f"ended by itself ({describe_exit(status)})", running.last_lines())

    def watch(self) -> None:
        """Watches until a part ends (PartDiedError) or the person interrupts (KeyboardInterrupt)."""
        while True:
            self.check()
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Ends every part and everything that came from one: asks first, kills after `grace_s`."""
        parts = list(self.running.values())
        end([running for running in parts if not running.part.stop_last], self.grace_s)
        end([running for running in parts if running.part.stop_last], self.grace_s)
        self.running.clear()


def start_in_own_session(part: Part, output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Starts a part's process with its output in `output` and nothing on its input."""
    return subprocess.Popen(
        list(part.command),
        env=None if part.environment is None else dict(part.environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def end(parts: Sequence[RunningPart], grace_s: float) -> None:
    """Ends parts side by side: SIGTERM, repeated every `TERM_AGAIN_S`, and SIGKILL after `grace_s`."""
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
        logger.warning("%s did not end when asked and was killed", running.part.name)
    for running in parts:
        running.kill()


def is_running(process: psutil.Process) -> bool:
    """Whether a process runs still: a zombie has ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def not_ready(running: RunningPart) -> PartNotReadyError:
    """The error about a part that has had its time."""
    what = f"was not ready after {running.part.ready_within_s:.0f} s"
    if why := running.why_not_ready():
        what += f" ({why})"
    return PartNotReadyError(running.part.name, what, running.last_lines())


def describe_exit(status: int) -> str:
    """An exit status in words: "exit status 1" or "killed by SIGKILL"."""
    if status >= 0:
        return f"exit status {status}"
    return f"killed by {signal.Signals(-status).name}"


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends the service: Ctrl-C, `kill`, and a closed terminal."""


class StopRequested(KeyboardInterrupt):
    """A stop signal came. A KeyboardInterrupt, as everything on the way out treats it like Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class StopSignals:
    """While entered, the first stop signal raises StopRequested, and those that follow change nothing.

    Several come together where a whole process group is asked to end: each parent passes its own on.
    Signals ignored from outside (nohup) stay ignored. Main thread only.
    """

    def __init__(self) -> None:
        self._came = False
        self._held = False
        self._waiting: int | None = None
        """The signal that came while held."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        numbers = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._interrupt) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A signal that comes inside raises at the end of it."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._waiting is not None:
            number, self._waiting = self._waiting, None
            raise StopRequested(number)

    def ignore(self) -> None:
        """From now on stop signals change nothing."""
        self._came = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._came:
            return
        self._came = True
        if not self._held:
            raise StopRequested(number)
        self._waiting = number
