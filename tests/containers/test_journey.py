"""The life of an installation, in order: each test goes on where the one before it ended.

Run by `make containers`, with a Docker engine. These are the commands of docs/deployment.md.

"""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
import time
from io import BytesIO
from pathlib import Path

import pytest
import requests

from tests.containers.project import FOUND_IOU, SCENES, ContainerProject
from tests.containers.stack import OURS, POLL_S, Stack, docker
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(3600)
SERVICES = (*OURS, "label-studio")
TRAINED_WITHIN_S = 1500.0


def has_containers(stack: Stack) -> list[str]:
    """Names of the services that have containers, running or not."""
    return sorted(set(stack.compose("ps", "--all", "--format", "{{.Service}}").split()))


def test_everything_becomes_healthy(stack: Stack) -> None:
    began_s = time.monotonic()
    stack.up()
    stack.note("docker compose up", time.monotonic() - began_s)
    stack.wait_healthy(*SERVICES)
    stack.wait_ready()
    stack.note("all healthy, and the model loaded, after the first start", time.monotonic() - began_s)
    assert has_containers(stack) == sorted(SERVICES)


def test_redis_wants_its_password_and_label_studio_cannot_reach_it(stack: Stack) -> None:
    assert "NOAUTH" in stack.compose("exec", "-T", "redis", "redis-cli", "ping")
    code = "import socket; socket.create_connection(('redis', 6379), 5)"
    address = stack.states("redis")[0]["NetworkSettings"]["Networks"].popitem()[1]["IPAddress"]
    for host in ("redis", address):
        command = f"{code.replace('redis', host)}"
        with pytest.raises(AssertionError, match=r"gaierror|TimeoutError|OSError"):
            stack.compose("exec", "-T", "label-studio", "python3", "-c", command)
    stack.compose("exec", "-T", "worker", "python", "-c", code)


def test_sign_up_needs_an_invitation(stack: Stack) -> None:
    session = requests.Session()
    form = session.get(f"{stack.label_studio_url}/user/signup/", timeout=30)
    data = {"email": "stranger@example.com", "password": "a-long-password"}
    token = session.cookies.get("csrftoken") or re.findall(r'csrfmiddlewaretoken" value="(\w+)', form.text)[0]
    headers = {"X-CSRFToken": token, "Referer": form.url}
    session.post(f"{stack.label_studio_url}/user/signup/", data=data, headers=headers, timeout=30)
    emails = [user["email"] for user in stack.client.users()]
    assert emails == [stack.settings["LABEL_STUDIO_USERNAME"]]


def test_what_is_written_goes_to_the_volume_and_the_mounted_folder_alone(stack: Stack) -> None:
    for service in ("backend", "worker", "schedule"):
        state = stack.states(service)[0]
        assert state["HostConfig"]["ReadonlyRootfs"]
        assert state["HostConfig"]["Memory"] > 0
        assert state["HostConfig"]["LogConfig"]["Config"]["max-size"]


def test_connect_goes_all_the_way(stack: Stack, project: ContainerProject) -> None:
    project.connect("http://backend.internal:9090")


def test_phrases_get_masks(stack: Stack, project: ContainerProject) -> None:
    began_s = time.monotonic()
    for phrase in project.known.phrases:
        assert bool(project.masks(SCENES, phrase.text)) == bool(phrase.targets), phrase.text
    stack.note(f"{len(project.known.phrases)} phrases on a new picture", time.monotonic() - began_s)


def test_corrections_arrive_and_a_fine_tune_is_promoted_and_served(
    stack: Stack, project: ContainerProject
) -> None:
    before = project.serving
    for index in range(10):
        project.correct(index)
    began_s = time.monotonic()

    def verdicts() -> list[str]:
        cards = json.loads(stack.sspsam("versions", "list", "--json"))
        made = [card for card in cards if card["version_id"] != before]
        return [card["status"] for card in made if card["status"] in ("promoted", "rejected")]

    wait_until(verdicts, "a judged version", TRAINED_WITHIN_S, 5.0)
    stack.note("from the last correction to a judged version", time.monotonic() - began_s)
    assert verdicts() == ["promoted"], stack.sspsam("versions", "list")
    wait_until(lambda: project.serving != before, "the new version serves", 60.0, POLL_S)
    project.version = project.serving
    assert max(project.found(index) for index in (10, 11)) > FOUND_IOU


def test_labels_come_out_as_a_file_and_as_a_stream(stack: Stack, project: ContainerProject) -> None:
    out = Path(stack.settings["OUT_DIR"])
    export = ("export", "--project", str(project.number))
    stack.sspsam(*export, "--out", "/out/labels.json")
    stack.sspsam(*export, "--format", "refcoco", "--out", "/out/refcoco")
    written = json.loads((out / "labels.json").read_text())
    assert len(written["annotations"]) == 10
    assert (out / "refcoco/instances.json").exists()
    streamed = json.loads(stack.sspsam(*export, "--out", "-"))
    assert streamed["annotations"] == written["annotations"]
    command = stack.command("exec", "-T", "backend", "sspsam", *export, "--format", "png", "--out", "-")
    done = subprocess.run(command, env=stack.environment, capture_output=True, timeout=300, check=True)
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        assert sum(name.endswith(".png") for name in archive.getnames()) == 10


def test_restart(stack: Stack, project: ContainerProject) -> None:
    began_s = time.monotonic()
    stack.compose("restart")
    stack.wait_healthy(*SERVICES)
    stack.note("restart, all healthy again", time.monotonic() - began_s)
    project.still_works()


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_container_comes_back(stack: Stack, project: ContainerProject, service: str) -> None:
    began_s = time.monotonic()
    stack.kill(service)
    stack.wait_healthy(*SERVICES)
    stack.note(f"{service} killed, all healthy again", time.monotonic() - began_s)
    project.still_works()


def test_corrections_that_were_saved_while_the_backend_was_away_are_found(
    stack: Stack, project: ContainerProject
) -> None:
    """Label Studio sends each event once."""
    stack.compose("stop", "backend")
    project.correct(10)
    stack.compose("start", "backend")
    stack.wait_healthy("backend")
    stack.compose("restart", "schedule")  # it looks at its start, and each quarter of an hour

    def collected() -> bool:
        code = (
            "from pathlib import Path; from worker.records import Collection; "
            f"print(len(Collection(Path('/models'), {project.number}).records()))"
        )
        return int(stack.compose("exec", "-T", "worker", "python", "-c", code)) == 11

    wait_until(collected, "the correction", 120.0, POLL_S)


def test_down_and_up_find_the_data(stack: Stack, project: ContainerProject) -> None:
    began_s = time.monotonic()
    stack.compose("down")
    stack.note("docker compose down", time.monotonic() - began_s)
    assert (
        docker("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={stack.name}") == ""
    )
    stack.up()
    stack.wait_healthy(*SERVICES)
    project.still_works()


def test_a_backup_is_restored_into_empty_volumes(
    stack: Stack, project: ContainerProject, tmp_path: Path
) -> None:
    folders = {"backend": "/models", "label-studio": "/label-studio/data"}
    stack.compose("stop")
    for service, folder in folders.items():
        with (tmp_path / service).open("wb") as file:
            stack.stream("tar", service, "-C", folder, "-cf", "-", ".", output=file)
    stack.compose("down", "--volumes")
    for service, folder in folders.items():
        with (tmp_path / service).open("rb") as file:
            stack.stream("tar", service, "-C", folder, "-xf", "-", source=file)
    stack.up()
    stack.wait_healthy(*SERVICES)
    project.still_works()


def test_two_workers_share_the_queues(stack: Stack, project: ContainerProject) -> None:
    stack.up("--scale", "worker=2", "--no-recreate")
    stack.wait_healthy("worker")
    assert len(stack.containers("worker")) == 2
    said = stack.sspsam("finetune", "--project", str(project.number))
    assert re.search(r"correct", said)
    stack.up("--scale", "worker=1", "--no-recreate")


def test_an_upgrade_and_a_rollback_of_the_image_keep_the_data(
    stack: Stack, project: ContainerProject
) -> None:
    image = stack.settings["SSPSAM_IMAGE"]
    upgraded = f"{image}-next"
    dockerfile = stack.folder / "next.Dockerfile"
    dockerfile.write_text(f"FROM {image}\nLABEL next=yes\n")
    docker("build", "--tag", upgraded, "--file", str(dockerfile), str(stack.folder))
    try:
        for name in (upgraded, image):
            stack.change(SSPSAM_IMAGE=name)
            stack.up("--no-build")
            stack.wait_healthy(*SERVICES)
            assert {state["Config"]["Image"] for state in stack.states("backend")} == {name}
            project.still_works()
    finally:
        docker("image", "rm", "--force", upgraded)
