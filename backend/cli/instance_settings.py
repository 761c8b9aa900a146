"""Settings of the commands that act on a service, and the line in which they say on which."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import typer

from backend.settings import Settings
from sspsam.instance import find_target


def service_settings(data_dir: Path | None) -> Settings:
    """For a command that needs a running service: its Redis, its Label Studio.

    Args:
        data_dir: What --data-dir says.

    Raises:
        InstanceError: that names no running instance, or several run.
        SettingsError: a variable holds something that it cannot mean.
    """
    target = find_target({}, data_dir)
    settings = Settings.of(target.variables)
    line = target.describe(
        LABEL_STUDIO_URL=settings.label_studio_url,
        REDIS_URL=settings.redis_url,
        MODEL_DIR=settings.model_dir,
    )
    typer.echo(line, err=True)
    return settings


def versions_settings(data_dir: Path | None, options: Mapping[str, object]) -> Settings:
    """For a command about the versions, of an instance that runs or has stopped.

    Args:
        data_dir: What --data-dir says.
        options: Variables that the command line gives; None for those that it does not.

    Raises:
        InstanceError, SettingsError: as for `service_settings`.
    """
    target = find_target(options, data_dir, stopped_too=True)
    settings = Settings.of(target.variables)
    place = {"VERSIONS_URL": settings.versions_url} if settings.versions_url else {}
    typer.echo(target.describe(MODEL_DIR=settings.model_dir, **place, PRESET=settings.preset), err=True)
    return settings
