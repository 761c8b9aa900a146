"""Adds missing parts to labeling configs; existing parts are kept."""

from __future__ import annotations

import difflib
from xml.parsers import expat

from backend.errors import LabelingConfigError
from backend.labelstudio.config import RECOMMENDED_CONFIG, ROLE_ATTRIBUTE, LabelingConfig, MissingTag

ON_TOP = frozenset({"hints", "prompt", "status", "absent"})
"""Parts placed above the image, visible without scrolling; others go to the end."""
INDENT = "  "
_CANNOT_BE = {
    "prompt": 'cannot be the prompt: only one may, for the whole image of the masks, without smart="false"',
    "phrase": 'cannot be the phrase: only one may, for the image of the masks, with perRegion="true"',
}


def completed_config(xml: str) -> str:
    """Adds the missing parts of a labeling config.

    Args:
        xml: A project's config. Without any named tag, as in a new project, it becomes the recommended one.

    Raises:
        LabelingConfigError: it is not XML.
    """
    config = LabelingConfig.parse(xml)
    missing = [tag for tag in config.missing() if tag.xml]
    inside = _inside(xml) if config.has_names else None
    if inside is None:
        return RECOMMENDED_CONFIG
    top, end = inside
    above = [tag for tag in missing if tag.role in ON_TOP]
    below = [tag for tag in missing if tag.role not in ON_TOP]
    return "".join([xml[:top], _lines(xml, top, above), xml[top:end], _lines(xml, end, below), xml[end:]])


def with_role(xml: str, name: str, role: str) -> str:
    """Marks a text area of any name as the prompt, or as the phrase under a region.

    Args:
        xml: A project's config.
        name: Name of the text area.
        role: "prompt" or "phrase".

    Raises:
        LabelingConfigError: it is not XML; there is no such text area, or it cannot have the role.
    """
    at = _text_area_at(xml, name)
    if at is None:
        raise LabelingConfigError(f"labeling config: there is no <TextArea> named “{name}”")
    before = LabelingConfig.parse(xml)
    if (tag := getattr(before, role)) is not None and tag.name == name:
        return xml
    after = f'{xml[:at]} {ROLE_ATTRIBUTE}="{role}"{xml[at:]}'
    tag = getattr(LabelingConfig.parse(after), role)
    if tag is None or tag.name != name:
        raise LabelingConfigError(f'labeling config: <TextArea name="{name}"> {_CANNOT_BE[role]}')
    return after


def config_diff(before: str, after: str) -> str:
    """Unified diff of two labeling configs."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after", lineterm="")
    return "\n".join(lines)


def _lines(xml: str, at: int, tags: list[MissingTag]) -> str:
    """The tags, one per line, formatted for insertion, possibly in the middle of a line."""
    if not tags:
        return ""
    within = "\n" if xml[:at].rpartition("\n")[2].strip() else ""
    return within + "".join(f"{INDENT}{tag.xml}\n" for tag in tags)


def _text_area_at(xml: str, name: str) -> int | None:
    """Position behind the tag name of a text area."""
    data = xml.encode()
    found: list[int] = []

    def note(tag: str, attributes: dict[str, str]) -> None:
        names = {key.lower(): value for key, value in attributes.items()}
        if tag.lower() == "textarea" and names.get("name") == name:
            found.append(parser.CurrentByteIndex + len(f"<{tag}"))

    parser = expat.ParserCreate()
    parser.StartElementHandler = note
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise LabelingConfigError(f"labeling config is not XML: {error}") from error
    return len(data[: found[0]].decode()) if found else None


def _inside(xml: str) -> tuple[int, int] | None:
    """Positions of the root's first child and closing tag, at the start of their lines if possible.

    None for an empty root.
    """
    data = xml.encode()
    starts: list[int] = []
    ends: list[int] = []
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda name, attributes: starts.append(parser.CurrentByteIndex)
    parser.EndElementHandler = lambda name: ends.append(parser.CurrentByteIndex)
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise LabelingConfigError(f"labeling config is not XML: {error}") from error
    if len(starts) == 1:
        return None
    first, last = (_line_start(xml, len(data[:at].decode())) for at in (starts[1], ends[-1]))
    return first, last


def _line_start(xml: str, at: int) -> int:
    line = xml.rfind("\n", 0, at) + 1
    return at if xml[line:at].strip() else line
