"""The worker's commands from the shell, with a real worker."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner

from tests.facts import untold
from tests.worker.label_studio_server import LabelStudioServer, region
from worker.cli.commands import app
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
