"""The app with images served over HTTP, as by Label Studio."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis
from werkzeug.wrappers import Response

from backend.settings import Settings
from backend.state.redis_store import RedisStore
from tests.backend.colours import encoded, picture
from tests.backend.editor import PATH
from tests.backend.web_server import Web


@pytest.fixture
def label_studio() -> Iterator[Web]:
    with Web({PATH: Response(encoded(picture()), content_type="image/png")}) as web:
        yield web


@pytest.fixture
def settings(settings: Settings, label_studio: Web) -> Settings:
    return settings.model_copy(update={"label_studio_url": label_studio.url})


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def redis_store(redis_server: Redis) -> RedisStore:
    return RedisStore(redis_server)
