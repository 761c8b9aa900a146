"""The local Label Studio started by `sspsam demo` and the tests, without telemetry."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import requests

from worker.local.supervisor import Part

FIRST_START_S = 900.0
"""The first start creates the database: about a minute on two idle cores."""
TIMEOUT_S = 5.0

SETTINGS: Mapping[str, str] = {
    # No telemetry and no check for newer versions.
    "COLLECT_ANALYTICS": "false",
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
    "LATEST_VERSION_CHECK": "false",
    # Both default to true, which refuses models on private addresses and silently drops their webhooks.
    "ML_BLOCK_LOCAL_IP": "false",
    "SSRF_PROTECTION_ENABLED": "false",
    # Read when the organization is created, on the first start: enables the legacy token below.
    "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
    "DISABLE_SIGNUP_WITHOUT_LINK": "true",
}
"""Label Studio 1.23 accepts every variable as LABEL_STUDIO_X, HEARTEX_X or X."""

KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SYSTEMROOT")
"""The only variables passed on: it would read our HOST, PORT or DEBUG as its own."""


@dataclass(frozen=True)
class Account:
    """The user that Label Studio creates on its first start."""

    email: str
    password: str
    token: str
    """40 hexadecimal digits, the user's API token."""


def label_studio_part(executable: Path, port: int, data_dir: Path, account: Account) -> Part:
    """Label Studio on 127.0.0.1, its data in `data_dir`."""
    url = f"http://127.0.0.1:{port}"
    command = [str(executable), "start", "--no-browser", "--host", url]
    command += ["--internal-host", "127.0.0.1", "--port", str(port), "--data-dir", str(data_dir)]
    return Part(
        "label-studio",
        command,
        environment=label_studio_environment(data_dir, account),
        ready=lambda: requests.get(f"{url}/health/", timeout=TIMEOUT_S).ok,
        awaits=f"an answer from {url}/health/",
        ready_within_s=FIRST_START_S,
        umask=0o077,
    )


def label_studio_environment(data_dir: Path, account: Account) -> dict[str, str]:
    """The environment of Label Studio."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    user = {
        "LABEL_STUDIO_USERNAME": account.email,
        "LABEL_STUDIO_PASSWORD": account.password,
        "LABEL_STUDIO_USER_TOKEN": account.token,
    }
    # These two locate the few files that it keeps outside its data folder.
    folders = {"XDG_CONFIG_HOME": str(data_dir / "config"), "XDG_DATA_HOME": str(data_dir / "share")}
    return {**kept, **SETTINGS, **user, **folders, "PYTHONUNBUFFERED": "1"}
