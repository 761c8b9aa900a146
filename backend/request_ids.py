"""Ids of requests: in answers, in every line that is logged for one, on the form when something fails."""

from __future__ import annotations

import logging
from contextvars import ContextVar

from backend.redaction import Redacting, secrets_of
from backend.settings import Settings

REQUEST_ID_HEADER = "X-Request-Id"
"""Taken over from whoever sends one, such as a proxy."""
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s [%(request_id)s]: %(message)s"

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""Of the request that this thread answers."""


def configure_logging(settings: Settings) -> None:
    """Sets the root logger up; each line names its request, or "-" where there is none, and no secret."""
    handler = logging.StreamHandler()
    handler.setFormatter(Redacting(logging.Formatter(LOG_FORMAT), secrets_of(settings)))
    handler.addFilter(add_request_id)
    logging.basicConfig(level=settings.log_level, handlers=[handler])


def add_request_id(record: logging.LogRecord) -> bool:
    """A filter that leaves nothing out."""
    record.request_id = request_id.get()
    return True
