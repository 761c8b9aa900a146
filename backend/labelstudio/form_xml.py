"""The tags of a form's XML, within bounds."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from backend.errors import LabelingConfigError

MAX_CHARACTERS = 4 * 2**20
"""Of a form; 20,000 labels have about 1.5 million."""
MAX_DEPTH = 100
"""Of nested tags."""


class _BoundedTree(ElementTree.TreeBuilder):
    """Refuses forms that are nested too deeply: the labels of a brush are those of all tags in it."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def start(self, tag: str, attrs: dict[str, str]) -> ElementTree.Element:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise LabelingConfigError(f"labeling config: tags are nested more than {MAX_DEPTH} deep")
        return super().start(tag, attrs)

    def end(self, tag: str) -> ElementTree.Element:
        self._depth -= 1
        return super().end(tag)


def form_tags(xml: str) -> list[ElementTree.Element]:
    """Returns a form's tags in document order; their and their attributes' names in lower case. Of several
    images that a tag is for, it has the first.

    Raises:
        LabelingConfigError: it is not XML, too large, or nested too deeply.
    """
    if len(xml) > MAX_CHARACTERS:
        raise LabelingConfigError(
            f"labeling config: {len(xml)} characters are too many, the limit is {MAX_CHARACTERS}"
        )
    if "<!doctype" in xml.lower():
        raise LabelingConfigError("labeling config: document types are not allowed")
    try:
        root = ElementTree.fromstring(xml, ElementTree.XMLParser(target=_BoundedTree()))
    except ElementTree.ParseError as error:
        raise LabelingConfigError(f"labeling config is not XML: {error}") from error
    for tag in root.iter():
        tag.tag = str(tag.tag).lower()
        tag.attrib = {name.lower(): value for name, value in tag.attrib.items()}
        if "," in tag.get("toname", ""):
            tag.set("toname", tag.get("toname", "").split(",")[0].strip())
    return list(root.iter())
