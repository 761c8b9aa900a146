"""Region controls: the tags of a form that make the regions which phrases are answered with.

    kind       with own labels          with a <Labels>, or without labels
    brush      <BrushLabels>            <Brush>
    bitmask    <BitmaskLabels>          <Bitmask>
    polygon    <PolygonLabels>          <Polygon>
    rectangle  <RectangleLabels>        <Rectangle>

Order of preference: a tag named `mask`, then by kind as in the table, then by position in the form. A control
without labels uses those of the first <Labels> on its image.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal, get_args

from backend.errors import LabelingConfigError
from backend.labelstudio.regions.labels import Label

Kind = Literal["brush", "bitmask", "polygon", "rectangle"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In order of preference."""
SHAPE_FIELD: dict[Kind, str] = {
    "brush": "rle",
    "bitmask": "imageDataURL",
    "polygon": "points",
    "rectangle": "width",
}
"""Kind -> the field of a result's value that only this kind has."""
PREFERRED_NAME = "mask"
SEAM = "seam"
"""Value of the attribute `sspsam` of a polygon control whose holes are cut with a seam."""
COLOUR = "colour"
"""Value of the attribute `sspsam` of a control that is the main one in another colour: masks are distributed
over them."""
_TAGS: dict[str, Kind] = {f"{kind}{ending}": kind for kind in KINDS for ending in ("labels", "")}
_LABELS_TAG = "labels"
MOST_NAMES = 100_000
"""Of the labels of all region controls, `predicted_values` included."""


@dataclass(frozen=True)
class Tag:
    """A named tag."""

    name: str
    to_name: str = ""


@dataclass(frozen=True)
class RegionControl(Tag):
    """A tag that makes regions."""

    labels: tuple[Label, ...] = ()
    kind: Kind = "brush"
    labels_tag: str = ""
    """Name of the <Labels> that has the labels; empty if they are its own, or if there are none."""
    has_own_labels: bool = True
    cuts_holes: bool = False
    """Whether holes of a polygon are cut with a seam."""
    is_colour: bool = False
    """Whether it stands for the main control in another colour."""

    @property
    def result_type(self) -> str:
        """Type of its results, and field of their labels if it has own labels."""
        return f"{self.kind}labels" if self.has_own_labels else self.kind

    @property
    def tag(self) -> str:
        """As written in a form."""
        return self.kind.capitalize() + ("Labels" if self.has_own_labels else "")

    def write_labels(self, label: str | None) -> dict[str, list[str]]:
        """The part of a result's value with its label."""
        return {self.result_type: [label] if label else []} if self.has_own_labels else {}


def region_tags(tags: Iterable[ElementTree.Element], image: str | None = None) -> list[ElementTree.Element]:
    """The region controls among a form's tags, in order of preference.

    Rectangles beside other region controls ask for a mask in the box, as long as they are smart (without
    labels: `smartOnly`); only without that are they answers. So do those with `smartOnly` beside any others.

    Args:
        tags: All tags, names in lower case.
        image: Only those on this image.
    """
    found = [tag for tag in tags if tag.tag in _TAGS and tag.get("name")]
    found = [tag for tag in found if image is None or tag.get("toname", image) == image]
    has_shapes = any(kind_of(tag) != "rectangle" for tag in found)
    asks = _is_smart if has_shapes else _is_smart_only
    found = [tag for tag in found if kind_of(tag) != "rectangle" or not asks(tag)] or found
    return sorted(found, key=lambda tag: (tag.get("name") != PREFERRED_NAME, KINDS.index(kind_of(tag))))


def controls_of(
    tags: Sequence[ElementTree.Element], everything: Sequence[ElementTree.Element]
) -> Iterator[RegionControl]:
    """Region controls with their labels.

    Args:
        tags: Their tags.
        everything: All tags of the form.

    Raises:
        LabelingConfigError: there are too many labels; a label in nested tags is one of each of them.
    """
    shared: dict[str | None, tuple[int, ElementTree.Element]] = {}
    for place, one in enumerate(everything):
        if one.tag == _LABELS_TAG and one.get("name"):
            shared.setdefault(one.get("toname"), (place, one))
    labels_of: dict[ElementTree.Element, tuple[Label, ...]] = {}
    left = MOST_NAMES
    for tag in tags:
        own = tag.tag.endswith("labels")
        image = tag.get("toname", "")
        beside = None if own else _first_for(image, shared)
        source = tag if own else beside
        if source is not None and source not in labels_of:
            labels_of[source] = tuple(_labels(source, left))
            left -= sum(1 + len(label.predicted) for label in labels_of[source])
        yield RegionControl(
            tag.get("name", ""),
            image,
            () if source is None else labels_of[source],
            kind_of(tag),
            "" if beside is None else beside.get("name", ""),
            own,
            tag.get("sspsam") == SEAM,
            tag.get("sspsam") == COLOUR,
        )


def kind_of(tag: ElementTree.Element) -> Kind:
    return _TAGS[tag.tag]


def _is_smart_only(tag: ElementTree.Element) -> bool:
    return tag.get("smartonly", "").strip().lower() == "true"


def _is_smart(tag: ElementTree.Element) -> bool:
    if tag.tag == "rectangle":
        return _is_smart_only(tag)
    return tag.tag == "rectanglelabels" and tag.get("smart", "true").strip().lower() != "false"


def _first_for(
    image: str, shared: Mapping[str | None, tuple[int, ElementTree.Element]]
) -> ElementTree.Element | None:
    """The first <Labels> of an image, or of none; None without one."""
    found = [shared[name] for name in (image, None) if name in shared]
    return min(found, key=itemgetter(0))[1] if found else None


def _labels(tag: ElementTree.Element, most: int) -> Iterator[Label]:
    for label in tag.iter("label"):
        if not label.get("value"):
            continue
        predicted = tuple(filter(None, map(str.strip, label.get("predicted_values", "").split(","))))
        most -= 1 + len(predicted)
        if most < 0:
            raise LabelingConfigError(f"labeling config: the labels have more than {MOST_NAMES} names")
        yield Label(label.get("value", ""), label.get("alias", ""), predicted)
