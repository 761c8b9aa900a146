"""COCO categories: the labels of a project's form.

They are the same in every export of a project: all labels of the form's region tags, in the form's order,
used or not. A label's `category` attribute is its ID, as in Label Studio's own export; the others have the
lowest free numbers. Labels that only annotations have, because the form has lost them, come after the form's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.form_xml import form_tags

NO_LABEL = "object"
"""Category of regions without a label."""
MAX_ID = 2**31 - 1
_REGION_TAGS = frozenset({"brush", "bitmask", "polygon", "rectangle", "ellipse", "vector"})
"""Tags that draw regions; each also as `...labels`, with labels of its own."""


@dataclass(frozen=True)
class FormLabels:
    """What a form says about regions."""

    labels: Mapping[str, int | None]
    """Label -> its `category` attribute, in the form's order."""
    aliases: Mapping[str, str]
    """Value of an aliased label -> its alias, under which results have it."""
    tags: frozenset[str]
    """Tags that draw regions, or label them."""
    tools: frozenset[str]
    """Tags whose regions are only sent to the model."""
    others: frozenset[str]
    """Tags whose labels are no categories: those of key points, and of other objects than the image."""
    has_bare_tags: bool
    """Whether a tag draws regions without labels."""


class Categories:
    """The categories of a project; labels that turn out to be missing are added.

    Args:
        form: Labels of the form.
        used: Labels that the project's annotations have, as far as known.
    """

    def __init__(self, form: FormLabels, used: Iterable[str] = ()) -> None:
        self._aliases = form.aliases
        self._ids: dict[str, int] = {}
        self._index: dict[str, int] = {}
        self._taken = {given for given in form.labels.values() if given is not None}
        self._given: set[int] = set()
        self._next = 1
        for label, given in form.labels.items():
            self._add(label, given)
        if form.has_bare_tags or not form.labels:
            self.id_of(None)
        for label in sorted(set(used) - form.aliases.keys()):
            self.id_of(label)

    def id_of(self, label: str | None) -> int:
        """ID of a label's category; that of NO_LABEL without one."""
        return self._ids[self._known(label)]

    def index_of(self, label: str | None) -> int:
        """Position of a label's category, from 0."""
        return self._index[self._known(label)]

    def name_of(self, label: str | None) -> str:
        """Name of a label's category."""
        name = label or NO_LABEL
        return name if name in self._ids else self._aliases.get(name, name)

    @property
    def names(self) -> list[str]:
        return list(self._ids)

    def as_coco(self) -> list[dict[str, Any]]:
        return [{"id": number, "name": name, "supercategory": ""} for name, number in self._ids.items()]

    def _known(self, label: str | None) -> str:
        name = self.name_of(label)
        if name not in self._ids:
            self._add(name, None)
        return name

    def _add(self, name: str, given: int | None) -> None:
        """Adds a category; of two labels with the same `category`, the second gets a free ID."""
        if given is None or given in self._given:
            while self._next in self._taken:
                self._next += 1
            given = self._next
            self._taken.add(given)
        self._given.add(given)
        self._index[name] = len(self._ids)
        self._ids[name] = given


def form_labels(xml: str, config: LabelingConfig) -> FormLabels:
    """Reads the labels of a form's region tags on the image.

    Raises:
        LabelingConfigError: the form cannot be read.
    """
    tags = [tag for tag in form_tags(xml) if tag.get("name")]
    image = config.image.name if config.image else ""
    labels: dict[str, int | None] = {}
    aliases: dict[str, str] = {}
    drawing, tools, others, bare, shared = set(), set(), set(), False, False
    for tag in tags:
        kind = str(tag.tag)
        is_region_tag = kind.removesuffix("labels") in _REGION_TAGS or kind == "labels"
        on_image = image in [name.strip() for name in tag.get("toname", image).split(",")]
        if not is_region_tag or not on_image:
            others |= {tag.get("name", "")} if kind.endswith("labels") else set()
        elif _is_tool(tag, config):
            tools.add(tag.get("name", ""))
        elif kind.endswith("labels"):
            drawing.add(tag.get("name", ""))
            shared |= kind == "labels"
            _read_labels(tag, labels, aliases)
        else:
            bare = True
    tag_names = (frozenset(drawing), frozenset(tools), frozenset(others))
    return FormLabels(labels, aliases, *tag_names, bare and not shared)


SMART = {"smart": "true", "smartonly": "false"}
"""The editor's attributes of tags whose regions are sent to the model, and their defaults."""


def _is_tool(tag: Element, config: LabelingConfig) -> bool:
    """Whether a tag's regions are boxes for the model: `smartOnly`, or the smart box beside a brush."""
    is_box = config.box is not None and config.box.name == tag.get("name") and config.mask is not None
    smart, only = (tag.get(name, default).strip().lower() for name, default in SMART.items())
    return only == "true" or (smart != "false" and is_box)


def used_labels(summary: Mapping[str, Any], form: FormLabels) -> list[str]:
    """Labels of region tags in the `created_labels` of Label Studio's summary of a project.

    Those of tags that the form has lost are left out: they may have been choices.
    """
    created = summary.get("created_labels")
    if not isinstance(created, Mapping):
        return []
    found = [names for tag, names in created.items() if tag in form.tags]
    return sorted({str(name) for names in found if isinstance(names, Mapping) for name in names})


def _read_labels(tag: Element, labels: dict[str, int | None], aliases: dict[str, str]) -> None:
    for label in tag.iter("label"):
        value, alias = label.get("value", ""), label.get("alias", "")
        if not value:
            continue
        name = alias or value
        if alias:
            aliases.setdefault(value, alias)
        if labels.get(name) is None:
            labels[name] = _category_id(label.get("category", ""))


def _category_id(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) <= 10 and int(text) <= MAX_ID else None
