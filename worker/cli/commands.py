"""`sspsam worker`, `schedule` and `finetune`, and the worker's other commands from their own modules."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Annotated

import typer

from sspsam.cli.commands import DataDirOption
from sspsam.cli.models import ModelOption, use_model
from sspsam.cli.output import echo
from sspsam.cli.weights import Mirror
from sspsam.printable import printable
from worker.cli.demo import app as demo_app
from worker.cli.export import app as export_app
from worker.cli.prefetch import app as prefetch_app
from worker.cli.prelabel import app as prelabel_app
from worker.cli.rank import app as rank_app
from worker.cli.versions import app as versions_app

if TYPE_CHECKING:
    from rq.job import Job

app = typer.Typer(pretty_exceptions_enable=False)  # its tracebacks show local values, passwords among them
app.registered_commands += demo_app.registered_commands
app.registered_commands += export_app.registered_commands
app.registered_commands += prefetch_app.registered_commands
app.registered_commands += prelabel_app.registered_commands
app.registered_commands += rank_app.registered_commands
app.add_typer(versions_app, name="versions")

Project = Annotated[int, typer.Option(help="Number of the Label Studio project.", min=1, show_default=False)]

DECISION_WAIT_S = 60.0


@app.command()
def worker(
    queues: Annotated[
        str, typer.Option(help="Queues to process, separated by commas.")
    ] = "events,reconcile,training,prelabel",
    burst: Annotated[bool, typer.Option(help="Exit when the queues are empty.")] = False,
    spare_cores: Annotated[
        int | None,
        typer.Option(
            help="Cores that jobs with the model leave to others, such as a backend on this machine; "
            "overrides TRAINING_CORES, whose default leaves one.",
            min=0,
        ),
    ] = None,
    model: ModelOption = None,
    mirror: Mirror = "",
) -> None:
    """Collect saved labels, run fine-tunes, pre-label projects. Start any number of workers, on any machine.

    On a machine with a GPU, --queues training,prelabel takes the jobs that need the model; leave the queues
    events and reconcile to another machine.
    """
    from backend.logs import configure_logging
    from backend.settings import Settings
    from backend.shared_redis import QUEUES
    from worker.queueing.pool import Pool, work_off
    from worker.queueing.queues import require_redis
    from worker.queueing.yielding import usable_cores

    names = [name.strip() for name in queues.split(",") if name.strip()]
    if not names or not set(names) <= set(QUEUES):
        raise typer.BadParameter(f"{queues!r}; the queues are {', '.join(QUEUES)}", param_hint="--queues")
    is_outdated = use_model(model, mirror, sam_encoder=os.environ.get("SAM_ENCODER"), follow=True)
    if spare_cores is not None:
        os.environ["TRAINING_CORES"] = str(max(1, usable_cores() - spare_cores))
    settings = Settings()
    configure_logging(settings)
    require_redis(settings.redis_url)
    if burst:
        work_off(names)
    else:
        Pool(names, settings, is_outdated).run()
        if is_outdated():
            echo("The backend has chosen another model: start this worker again to work with it.", err=True)
            raise typer.Exit(1)


@app.command()
def schedule(model: ModelOption = None, mirror: Mirror = "") -> None:
    """Check every project each minute, and periodically reconcile its labels with Label Studio."""
    from backend.logs import configure_logging
    from backend.settings import Settings
    from worker.queueing.queues import require_redis
    from worker.queueing.schedule import run_schedule

    use_model(model, mirror, sam_encoder=os.environ.get("SAM_ENCODER"), follow=True)
    settings = Settings()
    configure_logging(settings)
    require_redis(settings.redis_url)
    run_schedule(settings.redis_url)


@app.command()
def finetune(
    project: Project,
    now: Annotated[
        bool,
        typer.Option(
            "--now",
            help="Do not wait for the number of corrections to be reached, nor for quiet hours to end.",
        ),
    ] = False,
    start: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="VERSION",
            help="Start from this version of the project's line, or from the base weights (base), instead of "
            "the serving version; the result is promoted if it is not worse. Implies --now.",
        ),
    ] = "",
    data_dir: DataDirOption = None,
) -> None:
    """Fine-tune on a project's corrected labels if there are enough of them. Needs a running worker."""
    from backend.cli.instance_settings import service_settings
    from backend.shared_redis import connect
    from backend.worker_requests import request_finetune
    from worker.queueing.queues import require_redis

    settings = service_settings(data_dir)
    require_redis(settings.redis_url)
    now = now or bool(start)
    job = request_finetune(connect(settings.redis_url), project, now, start)
    decision = _wait_for(job)
    echo(printable(decision["reason"]))
    if decision["start"]:
        echo(f"The fine-tune is queued. To see its result: sspsam versions list --project {project}")
    elif decision["deferred"]:
        echo("The request is kept: the scheduler decides again each minute.")
    elif now:
        raise typer.Exit(1)


def _wait_for(job: Job, wait_s: float = DECISION_WAIT_S) -> dict[str, object]:
    """Waits for a short job and returns its result; for its start, at most some seconds."""
    from rq.exceptions import InvalidJobOperation

    from backend.errors import QueueUnavailableError

    until = time.monotonic() + wait_s
    while True:
        try:
            status = job.get_status()
        except InvalidJobOperation:  # it has been deleted
            status = None
        if status == "finished":
            return dict(job.return_value() or {})
        if status == "failed":
            latest = job.latest_result()
            last_line = (latest.exc_string or "").strip().splitlines()[-1:] if latest else []
            raise QueueUnavailableError(f"the worker failed: {''.join(last_line) or 'see its log'}")
        if status in (None, "stopped", "canceled"):
            raise QueueUnavailableError("the request was stopped")
        if status == "started":
            until = time.monotonic() + wait_s
        elif time.monotonic() > until:
            raise QueueUnavailableError(
                f"no worker took this job within {wait_s:.0f} s; it stays queued: start `sspsam worker`"
            )
        time.sleep(0.1)
