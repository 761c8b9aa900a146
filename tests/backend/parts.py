"""The parts of an app."""

from __future__ import annotations

from flask import Flask

from backend.service import Service

BASE = "ssp-sam-test-base"
"""The version that serves at first."""


def service_of(app: Flask) -> Service:
    service: Service = app.extensions["sspsam"]
    return service
