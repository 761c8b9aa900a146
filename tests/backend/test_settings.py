"""What the environment may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.errors import SettingsError
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
