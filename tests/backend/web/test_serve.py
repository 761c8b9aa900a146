"""The web server's own settings."""

from __future__ import annotations

import pytest

from backend.settings import Settings
from backend.web.serve import Server


@pytest.mark.parametrize("host", ["127.0.0.1", "::", "::1", "backend.example.com"])
def test_it_listens_on_addresses_of_both_families(host: str) -> None:
    assert Server(Settings(host=host, port=9191)).cfg.address == [(host, 9191)]
