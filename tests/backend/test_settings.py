"""Valid and invalid values of environment variables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from redis import Redis
from typer.testing import CliRunner

from backend.cli.commands import app as commands
from backend.errors import SettingsError
from backend.logs import secrets_of
from backend.settings import Settings


def test_names_that_label_studio_users_know(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "LABEL_STUDIO_URL": "https://ls.example.com/studio",
        "LABEL_STUDIO_API_KEY": "s3cret",
        "BASIC_AUTH_USER": "user",
        "BASIC_AUTH_PASS": "pass",
        "MODEL_DIR": "/models",
        "REDIS_URL": "unix:///tmp/r.sock",
        "DEVICE": "cuda",
        "PRESET": "ssp-sam-224",
        "WEIGHTS": "/models/ssp-sam-224.safetensors",
        "LOG_LEVEL": "DEBUG",
        "PORT": "9999",
        "FINETUNE_AFTER": "8",
        "PUBLIC_URL": "http://backend:9090/",
    }.items():
        monkeypatch.setenv(name, value)

    settings = Settings()

    assert settings.label_studio_url == "https://ls.example.com/studio"
    assert (settings.preset, settings.weights) == ("ssp-sam-224", Path("/models/ssp-sam-224.safetensors"))
    assert settings.images_dir == Path("/models/images")
    assert settings.basic_auth == ("user", "pass")
    assert settings.backend_url == "http://backend:9090"
    assert (settings.device, settings.port, settings.finetune_after) == ("cuda", 9999, 8)
    assert "s3cret" not in repr(settings)
    assert "pass'" not in repr(settings)


def test_empty_variables_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As docker compose passes them when .env does not set them."""
    for name in (
        "BASIC_AUTH_USER",
        "BASIC_AUTH_PASS",
        "PUBLIC_URL",
        "LABEL_STUDIO_URL",
        "HOST",
        "PORT",
        "WEIGHTS",
    ):
        monkeypatch.setenv(name, "")

    settings = Settings()

    assert settings.basic_auth is None
    assert settings.weights is None
    assert settings.backend_url == "http://127.0.0.1:9090"
    assert settings.label_studio_url == "http://127.0.0.1:8080"


def test_a_backend_on_every_address_is_reached_on_this_machine() -> None:
    assert Settings(host="0.0.0.0", port=9091, public_url="").backend_url == "http://127.0.0.1:9091"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LABEL_STUDIO_URL", "label-studio:8080"),
        ("LABEL_STUDIO_URL", "ftp://label-studio"),
        ("PUBLIC_URL", "http://"),
        ("PORT", "ninety"),
        ("PORT", "70000"),
        ("LOG_LEVEL", "LOUD"),
        ("FINETUNE_AFTER", "0"),
    ],
)
def test_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError, match=f"{name}: .*{value}"):
        Settings()


def test_where_versions_lie_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().versions_url == ""
    monkeypatch.setenv("VERSIONS_URL", "memory://bucket/models")
    assert Settings().versions_url == "memory://bucket/models"
    monkeypatch.setenv("VERSIONS_URL", "bucket/models")
    with pytest.raises(SettingsError, match=r"VERSIONS_URL: .*expected a URL such as s3://bucket/folder"):
        Settings()


@pytest.mark.parametrize(
    ("url", "connected"),
    [
        ("redis://redis:6379/0", "redis://:p%40ss%2Fw%3Ard@redis:6379/0"),
        ("rediss://redis", "rediss://:p%40ss%2Fw%3Ard@redis"),
        ("redis://sspsam@redis:6379/0", "redis://sspsam:p%40ss%2Fw%3Ard@redis:6379/0"),
        ("redis://:other@redis:6379/0", "redis://:other@redis:6379/0"),
        ("redis://redis?password=other", "redis://redis?password=other"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_redis_gets_its_password_unless_the_address_has_one(
    monkeypatch: pytest.MonkeyPatch, url: str, connected: str
) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    monkeypatch.setenv("REDIS_PASSWORD", "p@ss/w:rd")
    settings = Settings()
    assert settings.redis_url == connected
    assert settings.model_copy().redis_url == connected
    assert "p@ss/w:rd" in secrets_of(settings)
    if "p%40" in connected:
        assert Redis.from_url(connected).connection_pool.connection_kwargs["password"] == "p@ss/w:rd"


def test_secrets_are_new_each_time_and_need_no_quoting_anywhere() -> None:
    outputs = [CliRunner().invoke(commands, ["secrets", "--label-studio"]).output for _ in range(2)]
    made, again = (dict(line.split("=", 1) for line in output.splitlines()) for output in outputs)
    assert made.keys() >= {"BASIC_AUTH_PASS", "WEBHOOK_SECRET", "REDIS_PASSWORD", "LABEL_STUDIO_PASSWORD"}
    assert all(re.fullmatch(r"[A-Za-z0-9-]+", value) for value in made.values())
    assert re.fullmatch("[0-9a-f]{40}", made["LABEL_STUDIO_API_KEY"])
    same = {name for name in made if made[name] == again[name]}
    assert same == {"BASIC_AUTH_USER", "COMPOSE_PROFILES"}
    plain = CliRunner().invoke(commands, ["secrets"]).output
    assert "LABEL_STUDIO" not in plain, "one of your own has a key already"
