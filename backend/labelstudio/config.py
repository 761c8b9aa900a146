"""Labeling configs: which tag of a project's form plays which part.

Tags: https://labelstud.io/tags/ . Parts are found by tag type, and by name where several would do:

    image   <Image>, the one that the brush works on
    prompt  <TextArea> for the whole image: `prompt` if there is one of that name, else the first other
    mask    <BrushLabels>: `mask`, else the first
    phrase  <TextArea perRegion="true">: `phrase`, else the first
    status  <TextArea name="status"> for the whole image: where we can say what went wrong
    click   <KeyPointLabels>;  box  <RectangleLabels>
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
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
}
"""What to add for a part: `image` is the image tag's name, `labels` are the brush's, comma separated."""
_WHY: Mapping[str, str] = {
    "image": "there is no <Image>: no picture to look at",
    "prompt": "there is no <TextArea> for the whole image: nowhere to type a phrase",
    "mask": "there is no <BrushLabels>: nowhere to put a mask",
    "phrase": 'there is no <TextArea perRegion="true">: a mask keeps its phrase only as a hidden note',
    "status": 'there is no <TextArea name="status">: what went wrong is only written behind the phrase',
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
class MaskTag(Tag):
    """What a mask is painted with."""

    labels: tuple[str, ...] = ()

    def label_for(self, phrase: str) -> str | None:
        """Returns the label that the phrase is the name of, else the first; None when there is none."""
        same = (label for label in self.labels if label.casefold() == phrase.strip().casefold())
        return next(same, self.labels[0] if self.labels else None)


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
    mask: MaskTag | None = None
    phrase: Tag | None = None
    status: Tag | None = None
    click: Tag | None = None
    box: Tag | None = None
    mask_names: frozenset[str] = frozenset()
    """Every brush tag, for forms with more than one."""

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
            mask=None
            if mask is None
            else MaskTag(mask.get("name", ""), mask.get("toname", ""), _labels(mask)),
            phrase=_tag(_choose(per_region, "phrase")),
            status=_tag(next((tag for tag in areas if tag.get("name") == "status"), None)),
            click=_tag(_choose([tag for tag in tags if tag.tag == "keypointlabels"], "click")),
            box=_tag(_choose([tag for tag in tags if tag.tag == "rectanglelabels"], "box")),
            mask_names=frozenset(tag.get("name", "") for tag in brushes),
        )

    def missing(self) -> list[MissingTag]:
        """Returns the parts that no tag plays, the required ones first."""
        image = self.image.name if self.image else self.mask.to_name if self.mask else "image"
        labels = ",".join(self.mask.labels) if self.mask else "object"
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


def _labels(tag: ElementTree.Element) -> tuple[str, ...]:
    return tuple(label.get("value", "") for label in tag.iter("label") if label.get("value"))


def _is(tag: ElementTree.Element, attribute: str) -> bool:
    return tag.get(attribute, "").strip().lower() == "true"
