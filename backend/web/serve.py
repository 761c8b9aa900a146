"""The web server: one process, which holds the model, with one thread per request."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from backend.logs import configure_logging
from backend.service import Service
from backend.settings import Settings
from backend.web.access import body_limit, require_secrets
from backend.web.app import create_app
from sspsam.runtime.process import MEBIBYTE, limit_openmp_spin, tune_malloc

SPARE_THREADS = 32
"""Threads beside those at the model or waiting for it: for image downloads and /health."""
STOP_S = 30
"""Time for running requests to finish after SIGTERM."""
KEPT_BYTES = 160 * MEBIBYTE
"""Freed memory that is kept for further phrases and images instead of being returned to the system."""
SILENCE_S = 120
"""gunicorn replaces a process that is unresponsive for this long."""


logger = logging.getLogger(__name__)


class SafeLogger(Logger):  # type: ignore[misc]
    """gunicorn's own messages, through the root logger's handlers: without secrets and control characters."""

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self.error_log.propagate = True
        self.error_log.setLevel(self.LOG_LEVELS.get(cfg.loglevel, logging.INFO))


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn is not typed
    """gunicorn, configured from settings instead of a command line."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        settings = self._settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host  # of IPv6
        options = {
            "bind": [f"{host}:{settings.port}"],
            "workers": 1,
            "threads": settings.queue_limit + SPARE_THREADS,
            "worker_class": "backend.web.buffering.BufferingWorker",
            "logger_class": SafeLogger,
            "timeout": SILENCE_S,
            "graceful_timeout": STOP_S,
            "loglevel": settings.log_level.lower(),
            "proc_name": "sspsam-backend",
            "worker_exit": _end,
            "control_socket_disable": True,  # shared by all servers of this user, in the home folder
        }
        for name, value in options.items():
            if name in self.cfg.settings:  # older versions have no control socket
                self.cfg.set(name, value)

    def body_limit(self, path: str, headers: Mapping[str, str]) -> int:
        """See `access.body_limit`."""
        return body_limit(path, headers, self._settings)

    def load(self) -> Flask:
        """Creates the app in the serving process: threads and CUDA do not survive a fork."""
        app = create_app(self._settings)
        _engine_of(app).engine.start()
        _engine_of(app).events.reconcile()
        return app


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT; running requests finish first.

    Raises:
        SettingsError: no credentials are configured.
    """
    configure_logging(settings, with_request_ids=True)
    require_secrets(settings)
    if settings.tune_process:
        tune_process()
    Server(settings).run()


def tune_process() -> None:
    """Applies the process settings of the service; `load_preset` has those that need torch."""
    malloc, spin = tune_malloc(KEPT_BYTES), limit_openmp_spin()
    logger.info(
        "process settings: %s; %s; PyTorch: oneDNN matrix products on a CPU, one thread outside the model "
        "(TUNE_PROCESS=0 leaves all as they are)",
        f"freed memory kept up to {KEPT_BYTES // MEBIBYTE} MiB" if malloc else "malloc as it is",
        "OpenMP spin limited" if spin else "OpenMP as the environment says",
    )


def _end(arbiter: Any, worker: Any) -> None:
    """Last hook in the serving process.

    Freezes the garbage collector: the interpreter's collections at exit take seconds with torch, and on a
    busy machine longer than supervisors wait.
    """
    app = getattr(worker, "wsgi", None)
    if isinstance(app, Flask):
        _engine_of(app).engine.stop()
    gc.freeze()


def _engine_of(app: Flask) -> Service:
    service: Service = app.extensions["sspsam"]
    return service
