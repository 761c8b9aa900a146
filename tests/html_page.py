"""What a reader of an HTML page gets from it: texts, tables, links. Markup itself is left to the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = frozenset({"meta", "link", "input", "img", "br", "polyline", "line", "rect"})
UNSEEN = frozenset({"style", "title", "script"})


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    data: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join("".join(self.data).split())


class Page(HTMLParser):
    """A parsed page; a closing tag that fits no opening one is an error.

    Text that comes out as it was put in has been escaped: otherwise its angle brackets would be elements.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self._everything = Element("", {})
        self._open: list[Element] = []
        self.elements: list[Element] = []
        self.feed(html)
        self.close()
        assert [element.tag for element in self._open] == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_data(" ")
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(self.elements[-1])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.data.append(data)
        if not any(element.tag in UNSEEN for element in self._open):
            self._everything.data.append(data)

    @property
    def text(self) -> str:
        """All that is visible, with white space folded."""
        return self._everything.text

    @property
    def tags(self) -> set[str]:
        return {element.tag for element in self.elements}

    def texts(self, tag: str, css_class: str = "") -> list[str]:
        """Of every element with this tag and, unless empty, class."""
        found = [element for element in self.elements if element.tag == tag]
        return [element.text for element in found if css_class in ("", *_classes(element))]

    def values(self, tag: str, attribute: str) -> list[str]:
        """Of an attribute, wherever an element with this tag has it."""
        found = [element.attributes.get(attribute) for element in self.elements if element.tag == tag]
        return [value for value in found if value is not None]

    def text_of(self, element_id: str) -> str | None:
        """Of the element with this ID; None if there is none."""
        return next((one.text for one in self.elements if one.attributes.get("id") == element_id), None)

    def row(self, first: str) -> str:
        """Text of the table row that begins with a text."""
        (found,) = (text for text in self.texts("tr") if text.startswith(first))
        return found


def _classes(element: Element) -> list[str]:
    return element.attributes.get("class", "").split()
