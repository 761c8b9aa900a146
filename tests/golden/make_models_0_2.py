"""Makes `tests/golden/models-0.2`: a MODEL_DIR as release 0.2 leaves it, and what its model answered.

Two projects have corrected the tiny preset: a fine-tune of the first was promoted, and one of the second
after it, which was rolled back and promoted again. Run it with the code of commit a68c7da:

    git archive a68c7da | tar -x -C /tmp/release
    PYTHONPATH=/tmp/release python -P tests/golden/make_models_0_2.py FOLDER
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from redis import Redis, RedisError

from backend.settings import Settings
from sspsam import Predictor, mask_to_coco_rle
from tests.worker.label_studio_server import KEY, LabelStudioServer, region
from tests.worker.squares import scene
from worker import jobs
from worker.local.redis_program import redis_program
from worker.queueing.queues import training_queue
from worker.services import Services

PRESET = "ssp-sam-test"
PHRASES = {5: "the bright square", 6: "the dark background"}
"""By project."""
IMAGES = 8


def correct(label_studio: LabelStudioServer, project: int, images: range) -> None:
    for number in images:
        image, mask = scene(100 * project + number)
        task = 100 * project + number
        label_studio.add_task(task, project, image)
        label_studio.save(task, task, region(f"r{task}", PHRASES[project], mask if project == 5 else ~mask))


def finetune(services: Services, project: int) -> None:
    print(project, jobs.maybe_finetune(project, "now"))
    [job] = training_queue(services.redis).jobs
    print(jobs.finetune(**job.kwargs))
    training_queue(services.redis).empty()


def answers(folder: Path) -> None:
    """The serving version's answers, as COCO RLE with scores."""
    services = Services(Settings())
    predictor = Predictor.from_preset(PRESET, "cpu")
    predictor.load_trainable(services.store.load(services.store.current()))
    found = []
    for seed in range(900, 904):
        referents = predictor.predict(predictor.embed(scene(seed)[0]), list(PHRASES.values()))
        found += [
            {"scene": seed, "phrase": it.phrase, "mask": mask_to_coco_rle(it.mask), "score": it.score}
            for it in referents
        ]
    (folder / "answers.json").write_text(json.dumps({"version": services.store.current(), "answers": found}))


def main(folder: Path) -> None:
    socket = Path(tempfile.mkdtemp()) / "redis.sock"
    command = [str(redis_program()), "--port", "0", "--unixsocket", str(socket), "--save", ""]
    redis = subprocess.Popen(command, cwd=socket.parent, stdout=subprocess.DEVNULL)
    try:
        while True:
            with suppress(RedisError):
                if Redis.from_url(f"unix://{socket}").ping():
                    break
            time.sleep(0.1)
        with LabelStudioServer() as label_studio:
            os.environ |= {
                "LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": KEY, "DEVICE": "cpu",
                "REDIS_URL": f"unix://{socket}", "MODEL_DIR": str(folder / "models"), "PRESET": PRESET,
            }  # fmt: skip
            services = Services(Settings())
            for project in PHRASES:
                label_studio.add_project(project)
                correct(label_studio, project, range(IMAGES))
                finetune(services, project)
            services.store.rollback("worse on squares")
            services.store.promote("ssp-sam-test-0002", "better after all")
            print([(card.version_id, card.status, card.reason) for card in services.store.list()])
            answers(folder)
    finally:
        redis.terminate()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
