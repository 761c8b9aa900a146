"""Redacts secrets in logs: configured ones, and patterns in URLs and headers."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
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
