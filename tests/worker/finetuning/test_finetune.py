"""From corrected labels to new weights: real worker processes, the tiny preset, a few steps."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import torch
from PIL import Image
from rq.registry import StartedJobRegistry

from backend.shared_redis import VERSIONS_CHANNEL
from backend.web.app import create_app
from sspsam import Predictor
from sspsam.version_store.lines import line_of_project
from sspsam.version_store.store import VersionStore
from tests.facts import untold
from tests.waiting import wait_until
from tests.worker.label_studio_server import LabelStudioServer, absent, region
from tests.worker.squares import scene
from worker import jobs
from worker.finetuning.runs import run_folder
from worker.queueing.pool import END_S
from worker.queueing.queues import events_queue, training_queue
from worker.services import Services

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

UInt8Image = npt.NDArray[np.uint8]

PROJECT = 5
PHRASE = "the bright square"
WAIT_S = 120.0
CATCH_S = 0.005
"""For what lasts a moment."""
CLEARLY = 100
"""Difference of the channels of a coloured pixel: the noise of the scenes comes to about 60."""


@pytest.fixture(autouse=True)
def corrected_project(label_studio: LabelStudioServer) -> None:
    label_studio.add_project(PROJECT)
    for number in range(1, 9):
        image, mask = scene(number)
        label_studio.add_task(number, PROJECT, image)
        label_studio.save(number, number, [*region(f"r{number}", PHRASE, mask), absent("a giraffe")])


def work_off(environment: dict[str, str], *queues: str) -> None:
    """Runs real worker processes until their queues are empty."""
    command = [sys.executable, "-m", "worker", "worker", "--burst", "--queues", ",".join(queues)]
    subprocess.run(command, env=environment, check=True, timeout=240)


def test_corrections_become_a_version_that_serves(services: Services, environment: dict[str, str]) -> None:
    for number in range(1, 9):
        events_queue(services.redis).enqueue_call(
            "worker.jobs.collect_annotation",
            kwargs={"project_id": PROJECT, "annotation_id": number, "task_id": number},
        )
    work_off(environment, "events")
    [job] = training_queue(services.redis).jobs
    with services.redis.pubsub(ignore_subscribe_messages=True) as news:
        news.subscribe(VERSIONS_CHANNEL)
        news.get_message(timeout=1)
        work_off(environment, "training", "events")
        heard = news.get_message(timeout=1)

    store, version = services.store, "ssp-sam-test-0001"
    card = store.get(version)
    assert (card.status, store.current(line_of_project(PROJECT))) == ("promoted", version), card.reason
    assert job.return_value() == {"version": version, "status": "promoted", "reason": card.reason}
    assert heard is not None
    assert json.loads(heard["data"]) == {"line": line_of_project(PROJECT), "version": version}
    assert card.metrics["candidate"]["gIoU"] > card.metrics["incumbent"]["gIoU"] + 0.1
    assert (card.metrics["held_out_samples"], card.metrics["held_out_images"]) == (2, 2)
    assert card.data["trained_on"] == 8  # 6 images with a mask, and 2 of their 6 confirmed absences
    assert card.parent == store.base_version
    assert "ssp-sam-test-base" in (store.path(version) / "report.md").read_text()
    assert card.metrics["interval"][0] < card.metrics["interval"][1]
    page = (store.path(version) / "report.html").read_text()
    assert "<strong>Promoted.</strong> gIoU" in page
    assert page.count('src="data:image/webp') == 2
    assert_shown_on_the_start_page(services, version)
    assert card.data["labels"] == {"object": 6}
    assert sum(card.data["composition"].values()) == card.data["trained_on"]
    assert sum(card.data["composition_by_label"]["object"].values()) == 6
    assert card.data["learned_words"] == [], "nothing says which words it knew"
    assert store.load(version).keys() > {"prompt_generator.box_token.weight"}
    assert not run_folder(services.settings.model_dir, job.id).exists()
    assert training_queue(services.redis).count == 0, "the same labels are not learned twice"


def assert_shown_on_the_start_page(services: Services, version: str) -> None:
    """Its curve and its pictures, as a browser gets them from the backend."""
    client = create_app(services.settings.model_copy(update={"open_access": True})).test_client()
    page = client.get("/").text
    assert 'class="curve"' in page
    names = re.findall(rf'<img src="reports/{version}/([^"]+)"', page)
    assert len(names) == 2, "both held-out masks became better"
    assert page.count(f"<figcaption>{PHRASE} <span") == 2
    for name in names:
        response = client.get(f"/reports/{version}/{name}")
        assert response.content_type == "image/webp"
        pair = np.asarray(Image.open(BytesIO(response.data)).convert("RGB"), dtype=np.int16)
        left, right = pair[:, : pair.shape[1] // 2 - 2], pair[:, pair.shape[1] // 2 + 2 :]
        assert not is_red(right).any(), "before is left, in red"
        assert is_blue(right).any(), "after is right, in blue"
        assert not is_blue(left).any()


def is_red(picture: npt.NDArray[np.int16]) -> npt.NDArray[np.bool_]:
    return (picture[..., 0] > picture[..., 1] + CLEARLY) & (picture[..., 0] > picture[..., 2] + CLEARLY)


def is_blue(picture: npt.NDArray[np.int16]) -> npt.NDArray[np.bool_]:
    return picture[..., 2] > picture[..., 0] + CLEARLY


def test_a_candidate_that_is_no_better_is_kept_with_the_reason(
    services: Services, label_studio: LabelStudioServer
) -> None:
    incumbent = Predictor.from_preset("ssp-sam-test", "cpu")
    for number in range(1, 9):  # masks that the serving version draws just so: nothing can be better
        [referent] = incumbent.predict(incumbent.embed(scene(number)[0]), [PHRASE])
        label_studio.save(number, number, region("r", PHRASE, referent.mask))
    jobs.maybe_finetune(PROJECT, "now")
    [job] = training_queue(services.redis).jobs
    jobs.finetune(**job.kwargs)
    [_, card] = services.store.list()
    assert (card.status, services.store.current(line_of_project(PROJECT))) == (
        "rejected",
        services.store.base_version,
    )
    assert card.reason.startswith("gIoU 1.000 -> 0.")
    assert untold(card.reason, "2 labels", "2 held-out images", "+0.020") == []


def test_a_worker_that_is_ended_leaves_its_job_in_the_queue(
    services: Services, environment: dict[str, str]
) -> None:
    jobs.maybe_finetune(PROJECT, "now")
    [job] = training_queue(services.redis).jobs
    checkpoint = run_folder(services.settings.model_dir, job.id) / "training" / "checkpoint.pt"
    command = [sys.executable, "-m", "worker", "worker", "--queues", "training"]
    with subprocess.Popen(command, env=environment) as pool:
        wait_until(checkpoint.exists, patience_s=WAIT_S, poll_s=CATCH_S)
        pool.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert pool.wait(timeout=20) == 0
        assert time.monotonic() - started < END_S + 10
    assert job.get_status() == "queued"
    assert training_queue(services.redis).get_job_ids() == [job.id]
    work_off(environment, "training")
    assert services.store.current(line_of_project(PROJECT)) == "ssp-sam-test-0001"
    assert len(services.store.list()) == 2


def test_a_training_that_is_killed_ends_elsewhere_as_if_it_had_not_been(
    services: Services, environment: dict[str, str], tmp_path: Path
) -> None:
    jobs.maybe_finetune(PROJECT, "now")
    [job] = training_queue(services.redis).jobs
    unbroken = tmp_path / "unbroken"
    shutil.copytree(services.settings.model_dir, unbroken)
    checkpoint = run_folder(services.settings.model_dir, job.id) / "training" / "checkpoint.pt"
    with subprocess.Popen(
        [sys.executable, "-m", "worker.queueing.pool", "training"], env=environment
    ) as worker:
        wait_until(checkpoint.exists, patience_s=WAIT_S, poll_s=CATCH_S)
        horses = psutil.Process(worker.pid).children(recursive=True)
        worker.kill()
        for horse in horses:
            horse.kill()
    assert horses
    _, left = psutil.wait_procs(horses, timeout=10)
    assert not left
    log = checkpoint.with_name("log.jsonl")
    assert 0 < len(log.read_text().splitlines()) < 3, "or it was not killed in the middle"
    started = StartedJobRegistry(queue=training_queue(services.redis))
    [execution] = services.redis.zrange(started.key, 0, -1)
    services.redis.zadd(started.key, {execution: 1})  # a minute later, its heartbeat would be this old
    command = [sys.executable, "-m", "worker", "worker", "--queues", "training"]
    with subprocess.Popen(command, env=environment) as pool:
        wait_until(lambda: job.get_status() == "finished", patience_s=WAIT_S)
        pool.terminate()
    assert services.store.current(line_of_project(PROJECT)) == "ssp-sam-test-0001"
    assert len(services.store.list()) == 2
    assert not training_queue(services.redis).count

    kwargs = {"project_id": PROJECT, "run_id": job.id}
    training_queue(services.redis).enqueue_call("worker.jobs.finetune", kwargs=kwargs)
    work_off({**environment, "MODEL_DIR": str(unbroken)}, "training")
    other = VersionStore(unbroken, services.settings.preset)
    mine, theirs = (store.load("ssp-sam-test-0001") for store in (services.store, other))
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0)
    mine_card, their_card = (store.get("ssp-sam-test-0001") for store in (services.store, other))
    assert mine_card.metrics == their_card.metrics


PERFORM_AND_MEET = """
import sys, time
from pathlib import Path
from backend.settings import Settings
from sspsam.version_store.store import VersionStore
from worker.finetuning.runs import Run, run_folder
from worker.finetuning.training import perform

meeting, me, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

class MeetingStore(VersionStore):
    \"\"\"Waits, with its ID chosen, until the other has chosen one.\"\"\"

    def publish(self, state, card, files, published):
        def meet():
            (meeting / me).touch()
            while not (meeting / other).exists():
                time.sleep(0.01)
            return published()

        return super().publish(state, card, files, meet)

settings = Settings()
run = Run.read(run_folder(settings.model_dir, sys.argv[4]))
store = MeetingStore(settings.model_dir, settings.preset, url=settings.versions_url)
print(perform(run, store, settings).version_id)
"""


def test_two_that_perform_the_same_run_at_once_publish_it_once(
    services: Services, environment: dict[str, str], tmp_path: Path
) -> None:
    """As where a worker was taken for dead, and its job was given to another."""
    jobs.maybe_finetune(PROJECT, "now")
    [job] = training_queue(services.redis).jobs
    models, meeting = services.settings.model_dir, tmp_path / "meeting"
    meeting.mkdir()
    both = []
    for me, other in (("one", "other"), ("other", "one")):
        told = {
            **environment,
            "MODEL_DIR": str(shutil.copytree(models, tmp_path / me)),
            "VERSIONS_URL": (tmp_path / "versions").as_uri(),
        }
        command = [sys.executable, "-c", PERFORM_AND_MEET, str(meeting), me, other, job.id]
        both.append(subprocess.Popen(command, env=told, stdout=subprocess.PIPE, text=True))
    told_ids = [process.communicate(timeout=240)[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert told_ids == [["ssp-sam-test-0001"]] * 2
    store = VersionStore(tmp_path, services.settings.preset, url=(tmp_path / "versions").as_uri())
    assert [card.data["run"] for card in store.list()[1:]] == [job.id]
