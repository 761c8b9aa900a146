"""An `sspsam` command in a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sysconfig
from contextlib import suppress
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Self

SIZE = {"COLUMNS": "100", "LINES": "40", "TERM": "xterm"}
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
END_S = 240.0


class Terminal:
    """Runs `sspsam` with these arguments for as long as the block lasts."""

    def __init__(self, *arguments: str) -> None:
        self._command = [str(Path(sysconfig.get_path("scripts")) / "sspsam"), *arguments]
        self._bytes = b""

    def __enter__(self) -> Self:
        self._screen, end = pty.openpty()
        self._process = subprocess.Popen(
            self._command, stdin=end, stdout=end, stderr=end, env=os.environ | SIZE, start_new_session=True
        )
        os.close(end)
        self._reader = Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        os.close(self._screen)

    @property
    def text(self) -> str:
        """All that has been shown so far, without colours and moves of the cursor."""
        return ESCAPE.sub("", self._bytes.decode(errors="replace"))

    def interrupt(self) -> int:
        """Presses Ctrl-C; returns the exit status."""
        self._process.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        """Waits until the command has ended and all that it said has been read; returns the exit status."""
        status = self._process.wait(END_S)
        self._reader.join()
        return status

    def _read(self) -> None:
        with suppress(OSError):  # Linux's way to say that the other end is closed
            while chunk := os.read(self._screen, 1 << 16):
                self._bytes += chunk
