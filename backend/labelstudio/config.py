"""Labeling configs: roles of the tags in a project's form.

Tags: https://labelstud.io/tags/ . Masks and gestures are found by tag type, and by name among several
candidates. Text areas are found by name alone, because a form may have others, whose text is not ours:

    image   <Image>, the one of the chosen brush
    masks   <BrushLabels>: `mask`, else the first, comes first; others on the same image follow
    prompt  <TextArea name="prompt"> for the whole image, unless smart="false"
    phrase  <TextArea name="phrase" perRegion="true">
    absent  <TextArea name="absent"> for the whole image: phrases that a person confirmed to be absent
    status  <TextArea name="status"> for the whole image: shows messages
    hints   <View className="hints">: shows what only the browser knows
    click   <KeyPointLabels>: `click`, else the first; box  <RectangleLabels>: `box`, else the first.
            Those with smart="false" never send requests to a model: they are ordinary labels without a role

All are on the image of the masks. A text area with another name is prompt or phrase if the project lead has
confirmed it: `sspsam connect` then marks it with the attribute sspsam="prompt" or sspsam="phrase", which
Label Studio keeps with the form and otherwise ignores.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from xml.sax.saxutils import escape

from backend.errors import LabelingConfigError
from backend.labelstudio.recommended import RECOMMENDED_CONFIG as RECOMMENDED_CONFIG
from backend.labelstudio.recommended import SNIPPETS, WHY

MAX_CHARACTERS = 4 * 2**20
"""Of a form; 20,000 labels have about 1.5 million."""
MAX_DEPTH = 100
"""Of nested tags."""
_ENDINGS = ("", "s", "es")
"""Of a label in the singular and in the plural."""
_QUOTE = {'"': "&quot;"}
_REQUIRED = ("image", "prompt", "mask")
_TEXT_AREA_NAMES = frozenset({"prompt", "phrase", "status", "absent"})
SHOWN_CANDIDATES = 3
HINTS_CLASS = "hints"
ROLE_ATTRIBUTE = "sspsam"
"""Attribute by which the project lead gives a text area of another name its role."""
CONFIRMABLE = ("prompt", "phrase")


@dataclass(frozen=True)
class Tag:
    """A named tag."""

    name: str
    to_name: str = ""


@dataclass(frozen=True)
class ImageTag(Tag):
    """The image tag."""

    value: str = ""
    """The task's data field, without the dollar sign."""


@dataclass(frozen=True)
class Label:
    """One label of a brush."""

    value: str
    alias: str = ""
    predicted: tuple[str, ...] = ()
    """Names used by models: attribute `predicted_values`."""

    @property
    def written(self) -> str:
        """Name used in results: Label Studio drops predictions with the value of an aliased label."""
        return self.alias or self.value

    def place_in(self, phrase: str) -> tuple[int, int] | None:
        """Position at which a phrase names this label by one of its names, also in the plural.

        Returns:
            Lower is better: position in the phrase, then specificity of the name; None without a match.
        """
        text = _spelling(phrase)
        found = ((_named_at(text, spelling), -length) for spelling, length in self._spellings)
        return min(((place, order) for place, order in found if place is not None), default=None)

    @cached_property
    def _spellings(self) -> tuple[tuple[str, int], ...]:
        """Of each name, with the name's length."""
        names = (self.value, self.alias, *self.predicted)
        return tuple((_spelling(name), len(name)) for name in names if name.strip())


@dataclass(frozen=True)
class MaskTag(Tag):
    """A brush tag."""

    labels: tuple[Label, ...] = ()


@dataclass(frozen=True)
class Brush:
    """A brush and the label for a mask."""

    tag: MaskTag
    label: str | None
    """None for a tag without labels."""


@dataclass(frozen=True)
class MissingTag:
    """A role without a tag."""

    role: str
    required: bool
    """Without it, phrases cannot get masks."""
    reason: str
    xml: str
    """XML to add."""


@dataclass(frozen=True)
class LabelingConfig:
    """The tags of a project's form by role; None for roles without a tag."""

    image: ImageTag | None = None
    prompt: Tag | None = None
    masks: tuple[MaskTag, ...] = ()
    """The brushes for masks, main one first."""
    phrase: Tag | None = None
    status: Tag | None = None
    absent: Tag | None = None
    hints: Tag | None = None
    click: Tag | None = None
    box: Tag | None = None
    mask_names: frozenset[str] = frozenset()
    """All brush tags, including those on other images."""

    candidates: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    """Role -> names of the text areas that may have it once the project lead confirms it."""
    has_names: bool = False
    """Whether any tag has a name: a new project's form has none."""

    @property
    def mask(self) -> MaskTag | None:
        """The main brush."""
        return self.masks[0] if self.masks else None

    def brush_for(self, phrase: str, label: str | None = None) -> Brush:
        """Chooses brush and label for a mask.

        Args:
            phrase: Selects the label that it names first ("the man by the cars": man), else the first label.
            label: Overrides the phrase, if a brush has this label.

        Raises:
            LabelingConfigError: there is no brush.
        """
        self.require("mask")
        owned = [(tag, each) for tag in self.masks for each in tag.labels]
        for tag, each in owned:
            if label and label in (each.value, each.alias):
                return Brush(tag, each.written)
        named = [(place, tag, each) for tag, each in owned if (place := each.place_in(phrase)) is not None]
        if named:
            _, tag, chosen = min(named, key=lambda entry: entry[0])
            return Brush(tag, chosen.written)
        main = self.masks[0]
        return Brush(main, main.labels[0].written if main.labels else None)

    @classmethod
    def parse(cls, xml: str) -> LabelingConfig:
        """Parses a labeling config.

        Raises:
            LabelingConfigError: it is not XML.
        """
        everything = _tags(xml)
        tags = [tag for tag in everything if tag.get("name")]
        brushes = [tag for tag in tags if tag.tag == "brushlabels"]
        mask = _choose(brushes, "mask")
        image = _image_tag(tags, mask)
        here = image.name if image else mask.get("toname", "") if mask is not None else ""
        on_image = [tag for tag in tags if not here or tag.get("toname", here) == here]
        areas = [tag for tag in on_image if tag.tag == "textarea"]
        per_region = [tag for tag in areas if _is(tag, "perregion")]
        whole = [tag for tag in areas if not _is(tag, "perregion")]
        return cls(
            image=image,
            prompt=_tag(_text_area(_smart(whole, "textarea"), "prompt"), here),
            masks=tuple(_mask_tags(brushes, mask)),
            phrase=_tag(_text_area(per_region, "phrase"), here),
            status=_tag(_text_area(whole, "status"), here),
            absent=_tag(_text_area(whole, "absent"), here),
            hints=next((Tag(HINTS_CLASS) for tag in everything if tag.get("classname") == HINTS_CLASS), None),
            click=_tag(_choose(_smart(on_image, "keypointlabels"), "click"), here),
            box=_tag(_choose(_smart(on_image, "rectanglelabels"), "box"), here),
            mask_names=frozenset(tag.get("name", "") for tag in brushes),
            candidates={
                "prompt": _other_names(_smart(whole, "textarea")),
                "phrase": _other_names(per_region),
            },
            has_names=bool(tags),
        )

    def missing(self) -> list[MissingTag]:
        """Returns the roles without a tag, required ones first."""
        image = self.image.name if self.image else self.mask.to_name if self.mask else "image"
        labels = ",".join(label.written for tag in self.masks for label in tag.labels) or "object"
        return [
            MissingTag(role, role in _REQUIRED, WHY[role] + self._advice(role), _filled(xml, image, labels))
            for role, xml in SNIPPETS.items()
            if getattr(self, role) is None
        ]

    def _advice(self, role: str) -> str:
        """How to give the role to a text area of another name, if there are any."""
        names = self.candidates.get(role, ())
        if not names:
            return ""
        shown = " or ".join(f"“{name}”" for name in names[:SHOWN_CANDIDATES])
        command = f"sspsam connect --{role} {names[0]}"
        return f" (if {shown} is meant for that, run `{command}` with the project's ID)"

    def require(self, *roles: str) -> None:
        """Checks that roles have tags.

        Raises:
            LabelingConfigError: one has none; the message says which tag to add.
        """
        for tag in self.missing():
            if tag.role in roles:
                raise LabelingConfigError(f"labeling config: {tag.reason}. Add {tag.xml}")


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


def _tags(xml: str) -> list[ElementTree.Element]:
    """Tags in document order; tag and attribute names in lower case, as the editor reads them."""
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
    return list(root.iter())


def _filled(xml: str, image: str, labels: str) -> str:
    return xml.replace("{image}", escape(image, _QUOTE)).replace("{labels}", escape(labels, _QUOTE))


def _choose(tags: list[ElementTree.Element], name: str) -> ElementTree.Element | None:
    return next((tag for tag in tags if tag.get("name") == name), tags[0] if tags else None)


def _other_names(areas: list[ElementTree.Element]) -> tuple[str, ...]:
    """Names of text areas that may have a role, but have none by their name."""
    return tuple(tag.get("name", "") for tag in areas if tag.get("name") not in _TEXT_AREA_NAMES)


def _text_area(areas: list[ElementTree.Element], role: str) -> ElementTree.Element | None:
    """The one that the project lead has given the role, else the one with the role's name."""
    confirmed = (tag for tag in areas if role in CONFIRMABLE and tag.get(ROLE_ATTRIBUTE) == role)
    named = (tag for tag in areas if tag.get("name") == role and not tag.get(ROLE_ATTRIBUTE))
    return next(chain(confirmed, named), None)


def _tag(tag: ElementTree.Element | None, image: str) -> Tag | None:
    return None if tag is None else Tag(tag.get("name", ""), tag.get("toname", image))


def _image_tag(tags: list[ElementTree.Element], mask: ElementTree.Element | None) -> ImageTag | None:
    """The image of the masks; without a brush, the one named `image`, else the first."""
    images = [tag for tag in tags if tag.tag == "image" and tag.get("value", "").startswith("$")]
    if mask is not None and mask.get("toname"):
        image = next((tag for tag in images if tag.get("name") == mask.get("toname")), None)
    else:
        image = _choose(images, "image")
    return None if image is None else ImageTag(image.get("name", ""), "", image.get("value", "")[1:])


def _mask_tags(brushes: list[ElementTree.Element], main: ElementTree.Element | None) -> Iterator[MaskTag]:
    """The main brush, then the others on its image."""
    if main is None:
        return
    others = [tag for tag in brushes if tag is not main and tag.get("toname") == main.get("toname")]
    for tag in (main, *others):
        yield MaskTag(tag.get("name", ""), tag.get("toname", ""), tuple(_labels(tag)))


def _labels(tag: ElementTree.Element) -> Iterator[Label]:
    for label in tag.iter("label"):
        if label.get("value"):
            predicted = (name.strip() for name in label.get("predicted_values", "").split(","))
            yield Label(label.get("value", ""), label.get("alias", ""), tuple(filter(None, predicted)))


def _spelling(text: str) -> str:
    return " ".join(text.casefold().split())


def _named_at(text: str, name: str) -> int | None:
    """Where a text has a name as whole words, also in the plural; both as `_spelling` has them."""
    start = text.find(name)
    while start >= 0:
        behind = text[start + len(name) : start + len(name) + 3]
        whole = start == 0 or not _is_word(text[start - 1])
        if whole and any(behind.startswith(end) and not _is_word(behind[len(end) :][:1]) for end in _ENDINGS):
            return start
        start = text.find(name, start + 1)
    return None


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _smart(tags: list[ElementTree.Element], kind: str) -> list[ElementTree.Element]:
    """Tags of a type whose regions are sent to the model: the editor does so unless smart="false"."""
    return [tag for tag in tags if tag.tag == kind and tag.get("smart", "true").strip().lower() != "false"]


def _is(tag: ElementTree.Element, attribute: str) -> bool:
    return tag.get(attribute, "").strip().lower() == "true"
