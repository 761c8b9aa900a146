"""The compose stack as an operator runs it: `docker compose` in the repository, with an .env of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import requests

from tests.annotator_client import AnnotatorClient
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
COMMAND_S = 900.0
POLL_S = 1.0
DEFAULT_IMAGE = "ssp-sam-assist:0.2.0"
OURS = ("redis", "backend", "worker", "schedule")


class NoEngineError(Exception):
    """There is no container engine, or no compose, to run this with."""


def require_engine() -> None:
    """Finds out whether there is an engine with compose v2.

    Raises:
        NoEngineError: what is missing.
    """
    for command, what in (
        (["docker", "compose", "version"], "docker with compose v2"),
        (["docker", "info"], "a running Docker engine (DOCKER_HOST says where it is)"),
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except FileNotFoundError as error:
            raise NoEngineError("the container tests need Docker: no command `docker`") from error
        if done.returncode != 0:
            raise NoEngineError(
                f"the container tests need {what}: {done.stderr.strip() or done.stdout.strip()}"
            )


def docker(*arguments: str, timeout_s: float = COMMAND_S) -> str:
    """Runs a `docker` command that must succeed; returns what it printed."""
    return run(["docker", *arguments], timeout_s=timeout_s)


def run(command: list[str], timeout_s: float = COMMAND_S, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass
class Stack:
    """Containers, networks and volumes of one compose project."""

    name: str
    folder: Path
    """Of .env and of what is exported."""
    files: tuple[str, ...] = ("docker-compose.yml",)
    times: dict[str, float] = field(default_factory=dict)
    """What took how many seconds; printed at the end."""

    @property
    def env_file(self) -> Path:
        return self.folder / ".env"

    @property
    def settings(self) -> dict[str, str]:
        """The variables of .env; of a name that stands there twice, the last value."""
        lines = [f"SSPSAM_IMAGE={DEFAULT_IMAGE}", *self.env_file.read_text().splitlines()]
        return dict(line.split("=", 1) for line in lines if re.match("[A-Z_]+=", line))

    def append(self, lines: str) -> None:
        """Appends lines to .env."""
        with self.env_file.open("a") as file:
            file.write(f"{lines.strip()}\n")

    def change(self, **variables: str) -> None:
        self.append("\n".join(f"{name}={value}" for name, value in variables.items()))

    def note(self, what: str, took_s: float) -> None:
        self.times[what] = took_s

    def report(self) -> None:
        """Prints what took how long."""
        print("", *(f"{took_s:6.0f} s  {what}" for what, took_s in self.times.items()), sep="\n")

    @property
    def backend_url(self) -> str:
        return f"http://127.0.0.1:{self.settings['BACKEND_PORT']}"

    @property
    def label_studio_url(self) -> str:
        return f"http://127.0.0.1:{self.settings['LABEL_STUDIO_PORT']}"

    @property
    def client(self) -> AnnotatorClient:
        return AnnotatorClient(self.label_studio_url, self.settings["LABEL_STUDIO_API_KEY"])

    @property
    def basic_auth(self) -> tuple[str, str]:
        return self.settings["BASIC_AUTH_USER"], self.settings["BASIC_AUTH_PASS"]

    def command(self, *arguments: str) -> list[str]:
        """A `docker compose` command line on this stack."""
        command = ["docker", "compose", "--project-name", self.name, "--env-file", str(self.env_file)]
        return [*command, *(part for file in self.files for part in ("--file", file)), *arguments]

    @property
    def environment(self) -> dict[str, str]:
        """Without what .env says: variables of the shell would go before it."""
        return {name: value for name, value in os.environ.items() if name not in self.settings}

    def compose(self, *arguments: str, timeout_s: float = COMMAND_S) -> str:
        return run(self.command(*arguments), timeout_s, self.environment)

    def stream(
        self,
        program: str,
        service: str,
        *arguments: str,
        source: IO[bytes] | None = None,
        output: IO[bytes] | None = None,
    ) -> None:
        """Runs a program of a service's image on its volumes, with files for its input and output."""
        command = self.command("run", "--rm", "-T", "--no-deps", "--entrypoint", program, service, *arguments)
        subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            stdin=source or subprocess.DEVNULL,
            stdout=output,
            timeout=COMMAND_S,
            check=True,
        )

    def up(self, *arguments: str) -> None:
        self.compose("up", "--detach", *arguments)

    def sspsam(self, *arguments: str) -> str:
        """Runs `sspsam` in the backend's container."""
        return self.compose("exec", "--no-TTY", "backend", "sspsam", *arguments)

    def containers(self, service: str) -> list[str]:
        """Ids of a service's running containers."""
        return self.compose("ps", "--quiet", service).split()

    def states(self, service: str) -> list[dict[str, Any]]:
        """What the engine says about the containers of a service, also of those that have ended."""
        ids = self.compose("ps", "--all", "--quiet", service).split()
        return [json.loads(docker("inspect", "--format", "{{json .}}", one)) for one in ids]

    def healthy(self, *services: str) -> bool:
        return all(
            state["State"]["Status"] == "running"
            and state["State"].get("Health", {"Status": "healthy"})["Status"] == "healthy"
            for service in services
            for state in self.states(service) or [{"State": {"Status": "absent"}}]
        )

    def wait_healthy(self, *services: str, within_s: float = 600.0) -> None:
        """Waits, and notes how long each service took."""
        began_s = time.monotonic()
        waiting = list(services)

        def all_healthy() -> bool:
            for service in [one for one in waiting if self.healthy(one)]:
                waiting.remove(service)
                self.times[f"{service} healthy"] = time.monotonic() - began_s
            return not waiting

        wait_until(all_healthy, f"that {', '.join(services)} are healthy", within_s, POLL_S)

    def backend_health(self) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = requests.get(f"{self.backend_url}/health", timeout=5).json()
            return answer
        except (requests.RequestException, ValueError):
            return {}

    def wait_ready(self, within_s: float = 300.0) -> None:
        """Waits until the backend's model is loaded."""

        def ready() -> bool:
            return self.backend_health().get("model_state") == "ready"

        wait_until(ready, "the model of the backend", within_s, POLL_S)

    def kill(self, service: str) -> None:
        """Ends all processes in a service's container by SIGKILL, as the kernel does when memory runs out.

        `docker kill` would not do: the engine does not restart what it was told to kill.
        """
        before = self.states(service)[0]["RestartCount"]
        command = self.command("exec", "--no-TTY", service, "sh", "-c", "kill -9 -1")
        subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, timeout=COMMAND_S)
        wait_until(
            lambda: self.states(service)[0]["RestartCount"] > before,
            f"the restart of {service}",
            60.0,
            POLL_S,
        )
