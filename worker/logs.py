"""How the worker's processes log: one line per event, on standard error."""

from __future__ import annotations

import logging

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure_logging(level: str) -> None:
    """Sets the root logger up; RQ's loggers then use it as well.

    Args:
        level: DEBUG, INFO, WARNING or ERROR.
    """
    logging.basicConfig(level=level, format=LOG_FORMAT)
