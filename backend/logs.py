"""Logging: the format of lines, ids of requests, redaction of secrets, and escaping of control characters."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from urllib.parse import quote, urlsplit

from rq.logutils import colorizer

from backend.settings import Settings
from sspsam.printable import printable

HIDDEN = "***"
SHORTEST = 4
"""Shorter texts would match everywhere, and are not secret anyway."""
MESSAGE_MAX_CHARACTERS = 2**14
"""A longer message, or a longer traceback, loses its middle before anything else is done with it."""
_CUT_MARGIN = 512
"""Also removed on both sides of the cut, which may have halved a secret beyond recognition."""
_INDENT = "    "
"""Begins every line of a record but the first, so that no text from outside can look like a record."""

# Two attempts to match one of these never read the same characters, so each takes linear time.
_PATTERNS = (
    (re.compile(r"\b(Basic|Bearer|Token)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    (re.compile(r"(?i)(\bauthorization['\"]?\s*[:=]\s*['\"]?)[^\s'\"]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?<=[A-Za-z0-9+.-]://)[^\s/]+@"), f"{HIDDEN}@"),
)
_PARAMETER = re.compile(r"(?<=[?&])([^=&?\s]*)=[^&\s'\"]+")
_SECRET_NAME = re.compile(r"(?i)sign|token|secret|key|credential|password|auth")


class Redacting(logging.Formatter):
    """Wraps a formatter: bounds records and their tracebacks, hides secrets, escapes control characters."""

    def __init__(self, formatter: logging.Formatter, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._formatter = formatter
        found = {
            form for secret in secrets if len(secret) >= SHORTEST for form in (secret, quote(secret, ""))
        }
        self._secrets: Sequence[str] = sorted(found, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        message, details = copy.copy(record), []
        if record.exc_info and not record.exc_text:
            record.exc_text = self._formatter.formatException(record.exc_info)
        for text in (record.exc_text, record.stack_info):
            details += self.redact(shortened(text)).split("\n") if text else []
        message.msg, message.args = shortened(record.getMessage()), None
        message.exc_info = message.exc_text = message.stack_info = None
        head = printable(self.redact(self._formatter.format(message)))
        return "\n".join([head, *(_INDENT + printable(line) for line in details)])

    def redact(self, text: str) -> str:
        """Hides secrets, in time linear in the text's length."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        for pattern, hidden in _PATTERNS:
            text = pattern.sub(hidden, text)
        return _PARAMETER.sub(_without_secret, text)


def _without_secret(parameter: re.Match[str]) -> str:
    return f"{parameter[1]}={HIDDEN}" if _SECRET_NAME.search(parameter[1]) else parameter[0]


def shortened(text: str) -> str:
    """The text without its middle, if it is longer than MESSAGE_MAX_CHARACTERS."""
    cut = len(text) - MESSAGE_MAX_CHARACTERS
    if cut <= 0:
        return text
    kept = MESSAGE_MAX_CHARACTERS // 2 - _CUT_MARGIN
    return f"{text[:kept]} ... {len(text) - 2 * kept} characters ... {text[-kept:]}"


def secrets_of(settings: Settings) -> list[str]:
    """All secret values of the settings."""
    return [
        settings.label_studio_api_key.get_secret_value(),
        settings.basic_auth_pass.get_secret_value(),
        settings.viewer_pass.get_secret_value(),
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
    colorizer.notty = (
        True  # RQ colours its messages on a terminal: escape sequences, which are not obeyed here
    )
    handler = logging.StreamHandler()
    log_format = REQUEST_LOG_FORMAT if with_request_ids else LOG_FORMAT
    handler.setFormatter(safe_formatter(settings, log_format))
    if with_request_ids:
        handler.addFilter(add_request_id)
    logging.basicConfig(level=settings.log_level, handlers=[handler])


def safe_formatter(settings: Settings, log_format: str) -> logging.Formatter:
    """The formatter of every handler: see `Redacting`."""
    return Redacting(logging.Formatter(log_format), secrets_of(settings))


def add_request_id(record: logging.LogRecord) -> bool:
    """A filter that drops nothing."""
    record.request_id = request_id.get()
    return True
