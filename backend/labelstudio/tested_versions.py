"""The versions of Label Studio that `make compatibility` covers."""

from __future__ import annotations

from backend.errors import LabelStudioNotFound
from backend.labelstudio.client import LabelStudioClient

TESTED = ("1.13.1", "1.16.0", "1.20.0", "1.23.2")
"""Oldest first. In each, `make compatibility` connects a project, asks by API and in a browser, saves a
correction, and exports it. The last one is the version that `make install` installs.
"""


def version_line(client: LabelStudioClient) -> str:
    """Says the version of a Label Studio, and whether `make compatibility` covers it.

    Raises:
        LabelStudioError: Label Studio cannot be queried.
    """
    try:
        version = client.version()
    except LabelStudioNotFound:
        version = ""
    if version in TESTED:
        return f"Label Studio {version}, which `make compatibility` covers"
    told = f"Label Studio {version} is untested" if version else "Label Studio does not tell its version"
    return f"{told}: `make compatibility` covers {', '.join(TESTED[:-1])} and {TESTED[-1]}"
