"""Two backends behind nginx, with TLS: one dies, all are replaced, and no phrase fails."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event

import pytest
import requests

from backend.labelstudio.config import RECOMMENDED_CONFIG
from tests.containers.project import SCENES, ContainerProject
from tests.containers.stack import OURS, ROOT, Stack, docker, run

pytestmark = pytest.mark.timeout(1800)
TLS = ROOT / "deploy/nginx/tls"
ANNOTATORS = 3
METRICS = """
import os, requests
auth = os.environ["BASIC_AUTH_USER"], os.environ["BASIC_AUTH_PASS"]
print(requests.get("http://127.0.0.1:9090/metrics", auth=auth).text)
"""


@pytest.fixture(scope="module")
def scaled(stack: Stack) -> Iterator[Stack]:
    """The same stack with nginx, and a certificate that is made for the occasion."""
    kept = {path: path.read_bytes() for path in TLS.glob("tls.*")}
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(TLS / "tls.key"), "-out", str(TLS / "tls.crt")]
    run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files])
    (TLS / "tls.key").chmod(0o644)
    stack.change(LABEL_STUDIO_HOST=f"https://localhost:{stack.settings['PROXY_PORT']}")
    stack.files = ("docker-compose.yml", "deploy/compose.scale.yml")
    stack.up("--no-build")
    stack.wait_healthy(*OURS, "proxy", "label-studio")
    yield stack
    for path in TLS.glob("tls.*"):
        path.unlink()
    for path, content in kept.items():
        path.write_bytes(content)


@dataclass
class Answers:
    """What annotators got who asked all the time."""

    statuses: list[object] = field(default_factory=list)

    @property
    def failed(self) -> list[object]:
        return [status for status in self.statuses if status != 200]


@contextmanager
def asked_all_the_time(stack: Stack, project: ContainerProject) -> Iterator[Answers]:
    """Phrases to the port that Label Studio calls, one after the other, from several annotators at once."""
    answers, done = Answers(), Event()
    image = stack.client.task(project.tasks[SCENES])["data"]["image"]
    phrase = next(phrase.text for phrase in project.known.phrases if phrase.targets)
    prompt = {"id": "p", "from_name": "prompt", "to_name": "image", "value": {"text": [phrase]}}
    body = {
        "tasks": [{"id": project.tasks[SCENES], "data": {"image": image}}],
        "project": f"{project.number}.1",
        "label_config": RECOMMENDED_CONFIG,
        "params": {"context": {"result": [prompt]}},
    }

    def annotate() -> None:
        while not done.is_set():
            try:
                answer = requests.post(
                    f"{stack.backend_url}/predict", json=body, auth=stack.basic_auth, timeout=110
                )
                masks = [
                    part for part in answer.json()["results"][0]["result"] if part["type"] == "brushlabels"
                ]
                answers.statuses.append(answer.status_code if masks else answer.text)
            except (requests.RequestException, ValueError, LookupError) as error:
                answers.statuses.append(repr(error))
            time.sleep(0.2)

    with ThreadPoolExecutor(ANNOTATORS) as pool:
        for _ in range(ANNOTATORS):
            pool.submit(annotate)
        try:
            yield answers
        finally:
            done.set()


def test_two_backends_answer_through_the_proxy(scaled: Stack, project: ContainerProject) -> None:
    assert len(scaled.containers("backend")) == 2
    project.connect("http://backends.internal:9090")
    with asked_all_the_time(scaled, project) as answers:
        time.sleep(10)
    assert answers.statuses
    assert not answers.failed
    pattern = r'sspsam_requests_total\{endpoint="predict",status="200"\} (\S+)'
    metrics = [
        docker("exec", container, "python", "-c", METRICS) for container in scaled.containers("backend")
    ]
    answered = [re.findall(pattern, text) for text in metrics]
    assert all(answered), f"each has answered some: {answered}"


def test_browsers_reach_both_by_tls(scaled: Stack) -> None:
    url = f"https://localhost:{scaled.settings['PROXY_PORT']}"
    session = requests.Session()
    session.trust_env = False  # REQUESTS_CA_BUNDLE would go before it
    session.verify = str(TLS / "tls.crt")
    assert session.get(f"{url}/health/", timeout=30).json()["status"] == "UP"
    console = f"https://localhost:{scaled.settings['CONSOLE_PORT']}"
    assert session.get(f"{console}/", timeout=30).status_code == 401
    page = session.get(f"{console}/", headers={"Accept": "text/html"}, timeout=30)
    assert page.url.startswith(f"{console}/sign-in"), "links and redirects stay on the console's address"
    signed_in = session.get(
        f"{console}/", auth=scaled.basic_auth, headers={"Accept": "text/html"}, timeout=30
    )
    assert signed_in.headers["Content-Type"].startswith("text/html")
    form = session.get(f"{url}/user/login/", timeout=30)
    fields = {
        "email": scaled.settings["LABEL_STUDIO_USERNAME"],
        "password": scaled.settings["LABEL_STUDIO_PASSWORD"],
        "csrfmiddlewaretoken": re.findall(r'csrfmiddlewaretoken" value="(\w+)', form.text)[0],
    }
    session.post(form.url, data=fields, headers={"Origin": url, "Referer": form.url}, timeout=30)
    assert session.get(f"{url}/api/projects", timeout=30).status_code == 200, "logged in"


def test_a_backend_that_dies_fails_no_phrase(scaled: Stack, project: ContainerProject) -> None:
    victim = scaled.containers("backend")[0]
    with asked_all_the_time(scaled, project) as answers:
        time.sleep(3)
        subprocess.run(["docker", "exec", victim, "sh", "-c", "kill -9 -1"], capture_output=True, timeout=60)
        time.sleep(5)
        scaled.wait_healthy("backend")
        time.sleep(3)
    assert len(answers.statuses) > 5
    assert not answers.failed


def test_a_rolling_upgrade_fails_no_phrase(scaled: Stack, project: ContainerProject) -> None:
    old = scaled.containers("backend")
    with asked_all_the_time(scaled, project) as answers:
        began_s = time.monotonic()
        scaled.up(
            "--no-build",
            "--no-deps",
            "--no-recreate",
            "--wait",
            "--scale",
            f"backend={2 * len(old)}",
            "backend",
        )
        docker("stop", *old)
        docker("rm", *old)
        scaled.note("two backends replaced by new ones", time.monotonic() - began_s)
        time.sleep(3)
    assert not set(scaled.containers("backend")) & set(old)
    scaled.up("--no-build")
    assert len(scaled.containers("backend")) == 2
    assert len(answers.statuses) > 5
    assert not answers.failed
