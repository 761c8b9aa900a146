"""Logging: the format of lines, ids of requests, and redaction of secrets."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from urllib.parse import quote, urlsplit

from backend.settings import Settings

HIDDEN = "***"
SHORTEST = 4
"""Shorter texts would match everywhere, and are not secret anyway."""
_PATTERNS = (
    (re.compile(r"\b(Basic|Bearer|Token)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    (re.compile(r"(?i)(\bauthorization['\"]?\s*[:=]\s*['\"]?)[^\s'\"]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)[^\s/@]+@"), rf"\1{HIDDEN}@"),
    (
        re.compile(
            r"(?i)([?&][^=&\s]*(?:sign|token|secret|key|credential|password|auth)[^=&\s]*=)[^&\s'\"]+"
        ),
        rf"\1{HIDDEN}",
    ),
)


class Redacting(logging.Formatter):
    """Wraps a formatter and redacts its output, including tracebacks."""

    def __init__(self, formatter: logging.Formatter, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._formatter = formatter
        found = {
            form for secret in secrets if len(secret) >= SHORTEST for form in (secret, quote(secret, ""))
        }
        self._secrets: Sequence[str] = sorted(found, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        return self.redact(self._formatter.format(record))

    def redact(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        for pattern, hidden in _PATTERNS:
            text = pattern.sub(hidden, text)
        return text


def secrets_of(settings: Settings) -> list[str]:
    """All secret values of the settings."""
    return [
        settings.label_studio_api_key.get_secret_value(),
        settings.basic_auth_pass.get_secret_value(),
        settings.webhook_secret.get_secret_value(),
        settings.redis_password.get_secret_value(),
        urlsplit(settings.redis_url).password or "",
    ]


REQUEST_ID_HEADER = "X-Request-Id"
"""Taken over from the client, such as a proxy."""

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
REQUEST_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s [%(request_id)s]: %(message)s"

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""Request ID of the current thread."""


def configure_logging(settings: Settings, with_request_ids: bool = False) -> None:
    """Sets up the root logger; other loggers, RQ's among them, inherit from it. No line holds a secret.

    Args:
        settings: The level, and the secrets to hide.
        with_request_ids: Each line names its request, or "-" outside of one.
    """
    handler = logging.StreamHandler()
    log_format = REQUEST_LOG_FORMAT if with_request_ids else LOG_FORMAT
    handler.setFormatter(Redacting(logging.Formatter(log_format), secrets_of(settings)))
    if with_request_ids:
        handler.addFilter(add_request_id)
    logging.basicConfig(level=settings.log_level, handlers=[handler])


def add_request_id(record: logging.LogRecord) -> bool:
    """A filter that drops nothing."""
    record.request_id = request_id.get()
    return True
