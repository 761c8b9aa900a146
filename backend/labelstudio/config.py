"""Labeling configs: which tag of a project's form plays which part.

Tags: https://labelstud.io/tags/ . Parts are found by tag type, and by name where several would do:

    image   <Image>, the one that the brush works on
    prompt  <TextArea> for the whole image: `prompt` if there is one of that name, else the first other
    masks   <BrushLabels>: `mask`, else the first, comes first; others on the same image follow
    phrase  <TextArea perRegion="true">: `phrase`, else the first
    status  <TextArea name="status"> for the whole image: where we can say what went wrong
    click   <KeyPointLabels>: `click`, else the first; box  <RectangleLabels>: `box`, else the first.
            Those with smart="false" never ask a model, and are somebody's labels: they play no part
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from xml.sax.saxutils import escape

from backend.errors import LabelingConfigError

RECOMMENDED_CONFIG = """\
<View>
  <Style>
    .lsf-requesting .prompt::before { content: 'Looking...'; color: #b36b00; font-weight: bold; }
    .status form { display: none; }
  </Style>
  <View className="prompt">
    <TextArea name="prompt" toName="image" rows="1" showSubmitButton="true" editable="false"
              placeholder="Type a phrase (e.g. the red cup on the left) and press Enter"/>
  </View>
  <View className="status">
    <TextArea name="status" toName="image" maxSubmissions="1" editable="false" smart="false"/>
  </View>
  <BrushLabels name="mask" toName="image" smart="false" opacity="0.5">
    <Label value="object" background="#FF3B30"/>
  </BrushLabels>
  <KeyPointLabels name="click" toName="image" smart="true" smartOnly="true" opacity="0.9" strokeWidth="4">
    <Label value="refine" background="#0A84FF"
           hint="Auto-Detect tool: Ctrl+click adds, Ctrl+Alt+click takes away"/>
  </KeyPointLabels>
  <Image name="image" value="$image" zoom="true" zoomControl="true"/>
  <TextArea name="phrase" toName="image" perRegion="true" displayMode="region-list" whenLabelValue="object"
            editable="true" required="true" requiredMessage="Every mask needs its phrase"
            maxSubmissions="1" rows="1" smart="false"/>
</View>
"""

SNIPPETS: Mapping[str, str] = {
    "image": '<Image name="{image}" value="$image" zoom="true" zoomControl="true"/>',
    "prompt": '<TextArea name="prompt" toName="{image}" rows="1" showSubmitButton="true" editable="false"/>',
    "mask": '<BrushLabels name="mask" toName="{image}" smart="false"><Label value="object"/></BrushLabels>',
    "phrase": '<TextArea name="phrase" toName="{image}" perRegion="true" displayMode="region-list" '
    'whenLabelValue="{labels}" editable="true" required="true" maxSubmissions="1" rows="1" smart="false"/>',
    "status": '<TextArea name="status" toName="{image}" maxSubmissions="1" editable="false" smart="false"/>',
    "click": '<KeyPointLabels name="click" toName="{image}" smart="true" smartOnly="true">'
    '<Label value="refine" hint="Auto-Detect tool: Ctrl+click adds, Ctrl+Alt+click takes away"/>'
    "</KeyPointLabels>",
}
"""What to add for a part: `image` is the image tag's name, `labels` are the brush's, comma separated."""
_WHY: Mapping[str, str] = {
    "image": "there is no <Image>: no picture to look at",
    "prompt": "there is no <TextArea> for the whole image: nowhere to type a phrase",
    "mask": "there is no <BrushLabels>: nowhere to put a mask",
    "phrase": 'there is no <TextArea perRegion="true">: a mask keeps its phrase only as a hidden note',
    "status": 'there is no <TextArea name="status">: what went wrong is only written behind the phrase',
    "click": "there is no smart <KeyPointLabels>: a mask is corrected with the brush, not by a click",
}
_QUOTE = {'"': "&quot;"}
_REQUIRED = ("image", "prompt", "mask")


@dataclass(frozen=True)
class Tag:
    """A tag that has a name."""

    name: str
    to_name: str = ""


@dataclass(frozen=True)
class ImageTag(Tag):
    """Where the picture is shown."""

    value: str = ""
    """The task's data field, without the dollar sign."""


@dataclass(frozen=True)
class Label:
    """One label of a brush."""

    value: str
    alias: str = ""
    predicted: tuple[str, ...] = ()
    """What models call it: attribute `predicted_values`."""

    @property
    def written(self) -> str:
        """What results hold: Label Studio drops predictions that hold the value of a label with an alias."""
        return self.alias or self.value

    def place_in(self, phrase: str) -> tuple[int, int] | None:
        """Where a phrase names this label by one of its names, which may be in the plural.

        Returns:
            Lower is better: the place in the phrase, then the more telling name; None when it does not.
        """
        names = (name for name in (self.value, self.alias, *self.predicted) if name)
        found = ((match.start(), -len(name)) for name in names if (match := _naming(name).search(phrase)))
        return min(found, default=None)


@dataclass(frozen=True)
class MaskTag(Tag):
    """What a mask is painted with."""

    labels: tuple[Label, ...] = ()


@dataclass(frozen=True)
class Brush:
    """A tag and the label of it that a mask gets."""

    tag: MaskTag
    label: str | None
    """None where the tag has none."""


@dataclass(frozen=True)
class MissingTag:
    """A part that no tag plays."""

    role: str
    required: bool
    """Without it no phrase gets a mask."""
    reason: str
    xml: str
    """What to add."""


@dataclass(frozen=True)
class LabelingConfig:
    """The parts of a project's form; None where no tag plays it."""

    image: ImageTag | None = None
    prompt: Tag | None = None
    masks: tuple[MaskTag, ...] = ()
    """The brushes for masks, the main one first."""
    phrase: Tag | None = None
    status: Tag | None = None
    click: Tag | None = None
    box: Tag | None = None
    mask_names: frozenset[str] = frozenset()
    """Every brush tag, those on other images included."""

    has_names: bool = False
    """Whether any tag has a name: a new project's form has none."""

    @property
    def mask(self) -> MaskTag | None:
        """The main brush."""
        return self.masks[0] if self.masks else None

    def brush_for(self, phrase: str, label: str | None = None) -> Brush:
        """Chooses the brush and label of a mask.

        Args:
            phrase: The label that it names first is taken, "the man by the cars" a man; else the first label.
            label: Taken in place of that, where a brush has it.

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
        """Reads a labeling config.

        Raises:
            LabelingConfigError: it is not XML.
        """
        tags = _named_tags(xml)
        brushes = [tag for tag in tags if tag.tag == "brushlabels"]
        mask = _choose(brushes, "mask")
        areas = [tag for tag in tags if tag.tag == "textarea"]
        per_region = [tag for tag in areas if _is(tag, "perregion")]
        prompts = [tag for tag in areas if tag not in per_region and tag.get("name") != "status"]
        return cls(
            image=_image_tag(tags, mask),
            prompt=_tag(_choose(prompts, "prompt")),
            masks=tuple(_mask_tags(brushes, mask)),
            phrase=_tag(_choose(per_region, "phrase")),
            status=_tag(next((tag for tag in areas if tag.get("name") == "status"), None)),
            click=_tag(_choose(_smart(tags, "keypointlabels"), "click")),
            box=_tag(_choose(_smart(tags, "rectanglelabels"), "box")),
            mask_names=frozenset(tag.get("name", "") for tag in brushes),
            has_names=bool(tags),
        )

    def missing(self) -> list[MissingTag]:
        """Returns the parts that no tag plays, the required ones first."""
        image = self.image.name if self.image else self.mask.to_name if self.mask else "image"
        labels = ",".join(label.written for tag in self.masks for label in tag.labels) or "object"
        return [
            MissingTag(role, role in _REQUIRED, _WHY[role], _filled(xml, image, labels))
            for role, xml in SNIPPETS.items()
            if getattr(self, role) is None
        ]

    def require(self, *roles: str) -> None:
        """Checks that parts are played.

        Raises:
            LabelingConfigError: one is not; the message says which tag to add.
        """
        for tag in self.missing():
            if tag.role in roles:
                raise LabelingConfigError(f"labeling config: {tag.reason}. Add {tag.xml}")


def _named_tags(xml: str) -> list[ElementTree.Element]:
    """Tags in document order; names of tags and attributes in lower case, as the editor reads them."""
    if "<!doctype" in xml.lower():
        raise LabelingConfigError("labeling config: a document type is not read")
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise LabelingConfigError(f"labeling config is not XML: {error}") from error
    for tag in root.iter():
        tag.tag = str(tag.tag).lower()
        tag.attrib = {name.lower(): value for name, value in tag.attrib.items()}
    return [tag for tag in root.iter() if tag.get("name")]


def _filled(xml: str, image: str, labels: str) -> str:
    return xml.replace("{image}", escape(image, _QUOTE)).replace("{labels}", escape(labels, _QUOTE))


def _choose(tags: list[ElementTree.Element], name: str) -> ElementTree.Element | None:
    return next((tag for tag in tags if tag.get("name") == name), tags[0] if tags else None)


def _tag(tag: ElementTree.Element | None) -> Tag | None:
    return None if tag is None else Tag(tag.get("name", ""), tag.get("toname", ""))


def _image_tag(tags: list[ElementTree.Element], mask: ElementTree.Element | None) -> ImageTag | None:
    images = [tag for tag in tags if tag.tag == "image" and tag.get("value", "").startswith("$")]
    image = _choose(images, "image" if mask is None else mask.get("toname", ""))
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


def _naming(name: str) -> re.Pattern[str]:
    """Finds a label's name in a phrase, as words of their own."""
    words = r"\s+".join(re.escape(word) for word in name.split())
    return re.compile(rf"(?<!\w){words}(?:s|es)?(?!\w)", re.IGNORECASE)


def _smart(tags: list[ElementTree.Element], kind: str) -> list[ElementTree.Element]:
    """Tags of a kind whose regions are sent to the model; the editor does so unless told not to."""
    return [tag for tag in tags if tag.tag == kind and tag.get("smart", "true").strip().lower() != "false"]


def _is(tag: ElementTree.Element, attribute: str) -> bool:
    return tag.get(attribute, "").strip().lower() == "true"
