"""Text from others for logs and terminals: control characters are shown, not obeyed."""

from __future__ import annotations

import re

# C0, DEL and C1; bidirectional marks, overrides and isolates; line and paragraph separators; lone surrogates;
# annotation marks and tags, which are invisible.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)


def printable(text: object) -> str:
    r"""One line, in which each control character is an escape sequence: a line feed becomes `\n`.

    No text can then start a line that looks like another record, move the cursor, or reverse the order of
    what follows it.
    """
    return _CONTROL.sub(_escape, str(text))


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
