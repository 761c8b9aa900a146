"""A Label Studio of our own, as `sspsam demo` and the tests start it: local, and reporting nothing."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import requests

from worker.local.supervisor import Part

FIRST_START_S = 900.0
"""Its first start makes the data base: about a minute on two cores that have nothing else to do."""
TIMEOUT_S = 5.0

SETTINGS: Mapping[str, str] = {
    # Nothing is reported, and no newer version is asked for.
    "COLLECT_ANALYTICS": "false",
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
    "LATEST_VERSION_CHECK": "false",
    # Both default to true: models on private addresses are refused, their webhooks silently dropped.
    "ML_BLOCK_LOCAL_IP": "false",
    "SSRF_PROTECTION_ENABLED": "false",
    # Read when the organization is made, at the first start: lets the token below sign in.
    "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
    "DISABLE_SIGNUP_WITHOUT_LINK": "true",
}
"""Label Studio 1.23 reads every name as LABEL_STUDIO_X, HEARTEX_X or X."""

KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SYSTEMROOT")
"""All that it gets of our environment, since it would take our HOST, PORT or DEBUG for its own."""


@dataclass(frozen=True)
class Account:
    """The user that Label Studio makes at its first start."""

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
    )


def label_studio_environment(data_dir: Path, account: Account) -> dict[str, str]:
    """What Label Studio is told through its environment."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    user = {
        "LABEL_STUDIO_USERNAME": account.email,
        "LABEL_STUDIO_PASSWORD": account.password,
        "LABEL_STUDIO_USER_TOKEN": account.token,
    }
    # It also keeps a few files outside its data folder, where these two say.
    folders = {"XDG_CONFIG_HOME": str(data_dir / "config"), "XDG_DATA_HOME": str(data_dir / "share")}
    return {**kept, **SETTINGS, **user, **folders, "PYTHONUNBUFFERED": "1"}
