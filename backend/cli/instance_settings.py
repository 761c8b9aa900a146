"""Settings of commands that act on a service, and the line that names the service."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from backend.settings import Settings
from sspsam.cli.output import echo
from sspsam.instance import find_target


def service_settings(data_dir: Path | None) -> Settings:
    """Settings for a command that needs a running service, such as its Redis or Label Studio.

    Args:
        data_dir: Value of --data-dir.

    Raises:
        InstanceError: it names no running instance, or several are running.
        SettingsError: a variable has an invalid value.
    """
    target = find_target({}, data_dir)
    settings = Settings.of(target.variables)
    line = target.describe(
        LABEL_STUDIO_URL=settings.label_studio_url,
        REDIS_URL=settings.redis_url,
        MODEL_DIR=settings.model_dir,
    )
    echo(line, err=True)
    return settings


def versions_settings(data_dir: Path | None, options: Mapping[str, object]) -> Settings:
    """Settings for a command on the versions of a running or stopped instance.

    Args:
        data_dir: Value of --data-dir.
        options: Variables given on the command line; None for the others.

    Raises:
        InstanceError, SettingsError: as for `service_settings`.
    """
    target = find_target(options, data_dir, stopped_too=True)
    settings = Settings.of(target.variables)
    place = {"VERSIONS_URL": settings.versions_url} if settings.versions_url else {}
    echo(target.describe(MODEL_DIR=settings.model_dir, **place, PRESET=settings.preset), err=True)
    return settings
