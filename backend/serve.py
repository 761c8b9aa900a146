"""The web server: one process, since one process holds the model, with threads for the callers."""

from __future__ import annotations

import gc
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication

from backend.access import require_secrets
from backend.app import create_app
from backend.request_ids import configure_logging
from backend.service import Service
from backend.settings import Settings
from sspsam.allocation import MEBIBYTE, keep_freed_memory
from sspsam.openmp import watch_briefly

SPARE_THREADS = 32
"""Beside those that are at the model or wait for it: for pictures that are fetched, and for /health."""
STOP_S = 30
"""How long running requests may take to end after SIGTERM."""
KEPT_BYTES = 160 * MEBIBYTE
"""Freed memory that phrases and pictures take again, in place of new pages from the system."""
SILENCE_S = 120
"""A process that does not answer gunicorn for so long is replaced."""


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn is not typed
    """gunicorn, told from settings in place of a command line."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        settings = self._settings
        options = {
            "bind": [f"{settings.host}:{settings.port}"],
            "workers": 1,
            "threads": settings.queue_limit + SPARE_THREADS,
            "worker_class": "gthread",
            "timeout": SILENCE_S,
            "graceful_timeout": STOP_S,
            "loglevel": settings.log_level.lower(),
            "proc_name": "sspsam-backend",
            "worker_exit": _end,
            "control_socket_disable": True,  # one in the home folder, for all servers of this user
        }
        for name, value in options.items():
            if name in self.cfg.settings:  # older ones have no control socket
                self.cfg.set(name, value)

    def load(self) -> Flask:
        """Makes the app in the process that serves it: threads and CUDA do not survive a fork."""
        app = create_app(self._settings)
        _engine_of(app).engine.start()
        return app


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT; requests that are under way are answered first.

    Raises:
        SettingsError: callers would have nothing to show.
    """
    configure_logging(settings)
    require_secrets(settings)
    keep_freed_memory(KEPT_BYTES)
    watch_briefly()
    Server(settings).run()


def _end(arbiter: Any, worker: Any) -> None:
    """The last that runs in the process that serves.

    What lives is not looked through for garbage once more: Python does so several times on its way out, which
    with torch takes seconds, and on a busy machine longer than those who wait for the end are ready to.
    """
    app = getattr(worker, "wsgi", None)
    if isinstance(app, Flask):
        _engine_of(app).engine.stop()
    gc.freeze()


def _engine_of(app: Flask) -> Service:
    service: Service = app.extensions["sspsam"]
    return service
