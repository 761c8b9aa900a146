"""How the worker's processes log: one line per event, on standard error."""

from __future__ import annotations

import logging

from backend.logs import Redacting, secrets_of
from backend.settings import Settings

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure_logging(settings: Settings) -> None:
    """Sets the root logger up; RQ's loggers then use it as well. No line holds a secret."""
    handler = logging.StreamHandler()
    handler.setFormatter(Redacting(logging.Formatter(LOG_FORMAT), secrets_of(settings)))
    logging.basicConfig(level=settings.log_level, handlers=[handler])
