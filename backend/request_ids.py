"""Request IDs: in responses, in every log line of a request, and in error messages on the form."""

from __future__ import annotations

import logging
from contextvars import ContextVar

from backend.logs import Redacting, secrets_of
from backend.settings import Settings

REQUEST_ID_HEADER = "X-Request-Id"
"""Taken over from the client, such as a proxy."""
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s [%(request_id)s]: %(message)s"

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""Request ID of the current thread."""


def configure_logging(settings: Settings) -> None:
    """Configures the root logger; each line contains the request ID, or "-", and no secrets."""
    handler = logging.StreamHandler()
    handler.setFormatter(Redacting(logging.Formatter(LOG_FORMAT), secrets_of(settings)))
    handler.addFilter(add_request_id)
    logging.basicConfig(level=settings.log_level, handlers=[handler])


def add_request_id(record: logging.LogRecord) -> bool:
    """A filter that drops nothing."""
    record.request_id = request_id.get()
    return True
