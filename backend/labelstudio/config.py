"""Labeling configs: roles of the tags in a project's form.

Tags: https://labelstud.io/tags/ . Masks and gestures are found by tag type, and by name among several
candidates. Text areas are found by name alone, because a form may have others, whose text is not ours:

    image   <Image>, the one of the chosen region control
    masks   the region controls on it, in the order of `backend.labelstudio.regions.controls`
    prompt  <TextArea name="prompt"> for the whole image, unless smart="false"
    phrase  <TextArea name="phrase" perRegion="true">
    absent  <TextArea name="absent"> for the whole image: phrases that a person confirmed to be absent
    status  <TextArea name="status"> for the whole image: shows messages
    hints   <View className="hints">: shows what only the browser knows
    click   <KeyPointLabels>: `click`, else the first; box  <RectangleLabels>: `box`, else the first.
            Those with smart="false" never send requests to a model: they are ordinary labels without a role.
            In a form whose only regions are rectangles, these are answers

All are on the image of the masks. A text area with another name is prompt or phrase if the project lead has
confirmed it: `sspsam connect` then marks it with the attribute sspsam="prompt" or sspsam="phrase", which
Label Studio keeps with the form and otherwise ignores.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

from backend.errors import LabelingConfigError
from backend.labelstudio.form_xml import form_tags
from backend.labelstudio.recommended import CONFIRMABLE, FOUND_BY_NAME, SNIPPETS, WHY, free_name, snippet
from backend.labelstudio.recommended import RECOMMENDED_CONFIG as RECOMMENDED_CONFIG
from backend.labelstudio.recommended import ROLE_ATTRIBUTE as ROLE_ATTRIBUTE
from backend.labelstudio.regions.controls import RegionControl, Tag, controls_of, region_tags
from backend.labelstudio.regions.labels import Label, LabelIndex

ADDRESS_MAX_CHARACTERS = 2**20
"""Of an image's address that is put together from fields of the task's data."""
VARIABLE = re.compile(r"\$[A-Za-z0-9_\[\].{}]+")
"""A field of the task's data in a tag's value."""
_PATH_PARTS = re.compile(r"[^.\[\]]+")
_MOST_DIGITS = 10
_REQUIRED = ("image", "prompt", "mask")
_TEXT_AREA_NAMES = frozenset({"prompt", "phrase", "status", "absent"})
SHOWN_CANDIDATES = 3
HINTS_CLASS = "hints"


@dataclass(frozen=True)
class ImageTag(Tag):
    """The image tag."""

    value: str = ""
    """The task's data field, without the dollar sign; a text with fields in it, such as
    `https://images.example.com/$path`, as it is.
    """

    def of(self, data: Mapping[str, Any]) -> Any:
        """The image's address in a task's data, as the editor reads it; None if a field is missing."""
        if self.value in data:
            return data[self.value]
        fields = VARIABLE.findall(self.value)
        if not fields:
            return _field(data, self.value)
        values = {name: _field(data, name[1:]) for name in fields}
        if any(value is None for value in values.values()):
            return None
        if any(isinstance(value, Mapping | list) for value in values.values()):
            return None
        texts = {name: str(value) for name, value in values.items()}
        if len(self.value) + sum(len(texts[name]) for name in fields) > ADDRESS_MAX_CHARACTERS:
            return None
        return VARIABLE.sub(lambda name: texts[name[0]], self.value)


@dataclass(frozen=True)
class Choice:
    """The region control and the label for a mask."""

    control: RegionControl
    label: str | None
    """None for a control without labels."""
    is_named: bool = True
    """Whether the label was named, by the phrase or by the caller; otherwise it is the first."""
    label_of: RegionControl | None = None
    """The region control that has the label, if it is another one."""


@dataclass(frozen=True)
class MissingTag:
    """A role without a tag."""

    role: str
    required: bool
    """Without it, phrases cannot get masks."""
    reason: str
    xml: str
    """XML to add; empty if another tag has the name that the role requires."""

    @property
    def advice(self) -> str:
        """The reason, with the XML to add."""
        return f"{self.reason}. Add {self.xml}" if self.xml else self.reason


@dataclass(frozen=True)
class LabelingConfig:
    """The tags of a project's form by role; None for roles without a tag."""

    image: ImageTag | None = None
    prompt: Tag | None = None
    masks: tuple[RegionControl, ...] = ()
    """The region controls for answers, main one first."""
    phrase: Tag | None = None
    status: Tag | None = None
    absent: Tag | None = None
    hints: Tag | None = None
    click: Tag | None = None
    box: Tag | None = None
    controls: Mapping[str, RegionControl] = field(default_factory=dict, hash=False)
    """All region controls by name, including those on other images."""
    unsupported: str = ""
    """Why the form cannot be worked with, if it cannot."""
    candidates: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    """Role -> names of the text areas that may have it once the project lead confirms it."""
    names: frozenset[str] = frozenset()
    """Names of all tags."""

    @property
    def has_names(self) -> bool:
        """Whether any tag has a name: a new project's form has none."""
        return bool(self.names)

    @property
    def mask(self) -> RegionControl | None:
        """The main region control."""
        return self.masks[0] if self.masks else None

    @property
    def labels(self) -> tuple[Label, ...]:
        """The labels of all region controls for answers, in this order."""
        return tuple(dict.fromkeys(each for _, each in self._owned))

    @cached_property
    def _owned(self) -> list[tuple[RegionControl, Label]]:
        owners = {id(control.labels): control for control in reversed(self.masks)}  # the first of each
        return [
            (control, each)
            for control in self.masks
            if owners[id(control.labels)] is control
            for each in control.labels
        ]

    @cached_property
    def _index(self) -> LabelIndex:
        return LabelIndex.of(each for _, each in self._owned)

    def choice_for(self, phrase: str, label: str | None = None, control_name: str = "") -> Choice:
        """Chooses region control and label for a mask.

        Args:
            phrase: Selects the label that it names first ("the man by the cars": man), else the first label.
            label: Overrides the phrase, if a control has this label.
            control_name: The region control that the mask already has; empty for a new mask.

        Raises:
            LabelingConfigError: there is no region control.
        """
        self.require("mask")
        for control in self.masks:
            if control.name == control_name:
                return self._choice_in(control, self.choice_for(phrase, label))
        for control, each in self._owned:
            if label and label in (each.value, each.alias):
                return Choice(control, each.written)
        number = self._index.named_in(phrase)
        if number is not None:
            control, chosen = self._owned[number]
            return Choice(control, chosen.written)
        main = self.masks[0]
        return Choice(main, main.labels[0].written if main.labels else None, is_named=False)

    @staticmethod
    def _choice_in(control: RegionControl, choice: Choice) -> Choice:
        """A choice for a mask that keeps its region control. A label that nothing has named is not taken
        from another control.
        """
        if choice.label in [each.written for each in control.labels]:
            return replace(choice, control=control)
        if choice.is_named and choice.control.has_own_labels:
            return replace(choice, control=control, label_of=choice.control)
        return Choice(control, control.labels[0].written if control.labels else None, is_named=False)

    @cached_property
    def colours(self) -> tuple[RegionControl, ...]:
        """The main region control, and those that are it in another colour."""
        if self.mask is None:
            return ()
        as_main = replace(self.mask, is_colour=True)
        return self.mask, *(each for each in self.masks if replace(each, name=self.mask.name) == as_main)

    def coloured(self, control: RegionControl, colour: int) -> RegionControl:
        """The control of a region in one of the form's colours.

        Args:
            control: The control chosen for the region; others than the main one stay as they are.
            colour: Any number; each of the colours gets equally many.
        """
        return self.colours[colour % len(self.colours)] if control is self.mask else control

    @classmethod
    def parse(cls, xml: str) -> LabelingConfig:
        """Parses a labeling config.

        Raises:
            LabelingConfigError: it is not XML.
        """
        everything = form_tags(xml)
        tags = [tag for tag in everything if tag.get("name")]
        regions = region_tags(tags)
        mask = regions[0] if regions else None
        image = _image_tag(tags, mask)
        here = image.name if image else mask.get("toname", "") if mask is not None else ""
        on_image = [tag for tag in tags if not here or tag.get("toname", here) == here]
        areas = [tag for tag in on_image if tag.tag == "textarea"]
        answers = [] if mask is None else region_tags(tags, mask.get("toname", here))
        is_answer = set(answers)
        gestures = [tag for tag in on_image if tag not in is_answer]
        per_region = [tag for tag in areas if _is(tag, "perregion")]
        whole = [tag for tag in areas if not _is(tag, "perregion")]
        return cls(
            image=image,
            prompt=_tag(_text_area(_smart(whole, "textarea"), "prompt"), here),
            masks=tuple(controls_of(answers, tags)),
            phrase=_tag(_text_area(per_region, "phrase"), here),
            status=_tag(_text_area(whole, "status"), here),
            absent=_tag(_text_area(whole, "absent"), here),
            hints=next((Tag(HINTS_CLASS) for tag in everything if _has_class(tag, HINTS_CLASS)), None),
            click=_tag(_choose(_smart(on_image, "keypointlabels", "keypoint"), "click"), here),
            box=_tag(_choose(_smart(gestures, "rectanglelabels", "rectangle"), "box"), here),
            controls={control.name: control for control in controls_of(regions, tags)},
            unsupported=_unsupported(everything, image),
            candidates={
                "prompt": _other_names(_smart(whole, "textarea")),
                "phrase": _other_names(per_region),
            },
            names=frozenset(tag.get("name", "") for tag in tags),
        )

    def missing(self) -> list[MissingTag]:
        """Returns the roles without a tag, required ones first."""
        on_image = self.mask.to_name if self.mask else ""
        image = self.image.name if self.image else on_image or free_name("image", self.names)
        labels = [label.written for label in self.labels] or ([] if self.masks else ["object"])
        return [
            MissingTag(
                role,
                role in _REQUIRED,
                WHY[role] + self._advice(role),
                snippet(role, image, labels, self.names | {image}),
            )
            for role in SNIPPETS
            if getattr(self, role) is None
        ]

    def _advice(self, role: str) -> str:
        """How to give the role to a text area of another name, if there are any."""
        if role in FOUND_BY_NAME and role in self.names:
            return f" (another tag is named “{role}”: rename it, and connect again)"
        names = self.candidates.get(role, ())
        if not names:
            return ""
        shown = " or ".join(f"“{name}”" for name in names[:SHOWN_CANDIDATES])
        command = f"sspsam connect --{role} {names[0]}"
        return f" (if {shown} is meant for that, run `{command}` with the project's ID)"

    def require(self, *roles: str) -> None:
        """Checks that roles have tags.

        Raises:
            LabelingConfigError: one has none; the message says which tag to add. Or the form is unsupported.
        """
        if self.unsupported:
            raise LabelingConfigError(f"labeling config: {self.unsupported}")
        for tag in self.missing():
            if tag.role in roles:
                raise LabelingConfigError(f"labeling config: {tag.advice}")


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
    """The image of the masks; without a region control, the one named `image`, else the first."""
    images = [tag for tag in tags if tag.tag == "image" and _has_field(tag)]
    if mask is not None and mask.get("toname"):
        image = next((tag for tag in images if tag.get("name") == mask.get("toname")), None)
    else:
        image = _choose(images, "image")
    if image is None:
        return None
    value = image.get("value", "")
    is_field = value.startswith("$") and "$" not in value[1:] and VARIABLE.sub("", value) in ("", value)
    return ImageTag(image.get("name", ""), "", value[1:] if is_field else value)


def _has_field(image: ElementTree.Element) -> bool:
    value = image.get("value", "")
    return value.startswith("$") or VARIABLE.search(value) is not None


def _unsupported(tags: list[ElementTree.Element], image: ImageTag | None) -> str:
    """Why a form cannot be worked with: one mask, phrase and status belong to one image of a task."""
    if any(tag.tag == "repeater" for tag in tags):
        return "<Repeater> repeats the form for each page of a task: forms with pages are not supported"
    lists = [tag for tag in tags if tag.tag == "image" and tag.get("valuelist")]
    if lists and (image is None or any(tag.get("name") == image.name for tag in lists)):
        name = lists[0].get("name", "")
        return f'<Image name="{name}" valueList="..."> has several pages: forms with pages are not supported'
    return ""


def _field(data: object, path: str) -> Any:
    """The value at a path such as `photos[0].url`; a name with dots in it comes first."""
    if isinstance(data, Mapping) and path in data:
        return data[path]
    for part in _PATH_PARTS.findall(path):
        if isinstance(data, Mapping):
            data = data.get(part)
        elif isinstance(data, list) and part.isdecimal() and len(part) < _MOST_DIGITS:
            data = data[int(part)] if int(part) < len(data) else None
        else:
            return None
    return data


def _smart(tags: list[ElementTree.Element], *kinds: str) -> list[ElementTree.Element]:
    """Tags of some types whose regions are sent to the model: the editor does so unless smart="false"."""
    return [tag for tag in tags if tag.tag in kinds and tag.get("smart", "true").strip().lower() != "false"]


def _has_class(tag: ElementTree.Element, name: str) -> bool:
    return name in tag.get("classname", "").split()


def _is(tag: ElementTree.Element, attribute: str) -> bool:
    return tag.get(attribute, "").strip().lower() == "true"
