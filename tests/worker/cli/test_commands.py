"""The worker's commands from the shell, with a real worker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from threading import Timer

import numpy as np
import numpy.typing as npt
import pytest
from rq.job import Job, JobStatus
from typer.testing import CliRunner

from backend.errors import QueueUnavailableError
from backend.worker_requests import request_finetune
from tests.facts import untold
from tests.worker.label_studio_server import LabelStudioServer, region
from worker.cli.commands import _wait_for, app
from worker.queueing.queues import training_queue
from worker.services import Services

PROJECT = 6


@pytest.mark.integration
def test_finetune_says_what_the_worker_decides(
    services: Services,
    environment: dict[str, str],
    label_studio: LabelStudioServer,
    image: npt.NDArray[np.uint8],
    mask: npt.NDArray[np.bool_],
) -> None:
    label_studio.add_project(PROJECT)
    command = [sys.executable, "-m", "worker", "worker", "--queues", "events,reconcile"]
    with subprocess.Popen(command, env=environment) as worker:
        done = CliRunner().invoke(app, ["finetune", "--project", str(PROJECT), "--now"])
        assert done.exit_code == 1
        assert untold(done.output, "0 corrected masks", "0 images", "2 images") == []
        for number in (1, 2):
            label_studio.add_task(number, PROJECT, image // number)
            label_studio.save(number, number, region("a", "the ring", mask))
        done = CliRunner().invoke(app, ["finetune", "--project", str(PROJECT), "--now"])
        assert done.exit_code == 0, done.output
        assert "requested, with 2 new corrected masks" in done.output
        worker.terminate()
    assert training_queue(services.redis).count == 1


@pytest.mark.parametrize("queues", ["", "nonsense", "events,nonsense"])
def test_queues_that_do_not_exist_are_refused(services: Services, queues: str) -> None:
    done = CliRunner().invoke(app, ["worker", "--queues", queues])
    assert done.exit_code == 2
    assert "the queues are events, reconcile, training" in " ".join(done.output.replace("│", "").split())


def test_a_request_that_runs_for_long_is_waited_for(services: Services) -> None:
    job = request_finetune(services.redis, PROJECT)
    job.set_status(JobStatus.STARTED)
    timer = Timer(1.0, job.set_status, [JobStatus.FINISHED])
    timer.start()
    assert _wait_for(job, wait_s=0.3) == {}
    timer.join()


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (lambda job: job.cancel(), "was stopped"),
        (lambda job: job.set_status(JobStatus.STOPPED), "was stopped"),
        (lambda job: job.delete(), "was stopped"),
        (lambda job: job.set_status(JobStatus.FAILED), "see its log"),
        (lambda job: None, "no worker took this job"),
    ],
    ids=["canceled", "stopped", "deleted", "failed", "waiting"],
)
def test_a_request_that_comes_to_nothing_says_why(
    services: Services, end: Callable[[Job], None], reason: str
) -> None:
    job = request_finetune(services.redis, PROJECT)
    end(job)
    with pytest.raises(QueueUnavailableError, match=reason):
        _wait_for(job, wait_s=0.3)
