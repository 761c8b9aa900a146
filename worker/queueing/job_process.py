"""Process of one job that needs the model: `python -m worker.queueing.job_process WORKER_KEY JOB_ID
EXECUTION_ID`.

Started by worker.queueing.workers.ModelWorker, not by users. The environment gives the URL of Redis.
"""

from __future__ import annotations

import sys

from rq.executions import Execution
from rq.serializers import JSONSerializer

from backend.logs import configure_logging
from backend.settings import Settings
from backend.shared_redis import TRAINING, connect, fetch_job
from worker.queueing.queues import queue_named
from worker.queueing.workers import ModelWorker
from worker.queueing.yielding import lower_priority


def main(worker_key: str, job_id: str, execution_id: str) -> None:
    """Runs a job taken by its worker; does not return."""
    settings = Settings()
    configure_logging(settings)
    connection = connect(settings.redis_url)
    worker = ModelWorker.find_by_key(worker_key, connection=connection, serializer=JSONSerializer)
    if worker is None:
        sys.exit(f"no worker {worker_key} in Redis: it has exited meanwhile")
    assert isinstance(worker, ModelWorker)
    worker.job_modules = settings.job_modules
    job = fetch_job(job_id, connection)
    worker.execution = Execution.fetch(execution_id, job_id, connection=connection)
    lower_priority(settings.training_nice)
    if job.origin == TRAINING:
        from finetune.training.train import tune_process

        tune_process(settings.model_dir)
    worker.main_work_horse(job, queue_named(job.origin, connection))


if __name__ == "__main__":
    main(*sys.argv[1:])
