"""A project with what makes exports hard: shapes, overlaps, labels, pictures, tasks without regions."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.worker.label_studio_server import LabelStudioServer, absent, region

Mask = npt.NDArray[np.bool_]
Json = dict[str, Any]

PROJECT = 5
HW = (48, 64)
LABELS = ("cat", "собака", "猫", "never used")
FORM = f"""
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image" choice="multiple" smart="false">
    {"".join(f'<Label value="{label}"/>' for label in LABELS)}
  </BrushLabels>
  <PolygonLabels name="polygon" toName="image" smart="false"><Label value="cat"/></PolygonLabels>
  <RectangleLabels name="rectangle" toName="image" smart="false"><Label value="cat"/></RectangleLabels>
  <EllipseLabels name="ellipse" toName="image"><Label value="cat"/></EllipseLabels>
  <KeyPointLabels name="nose" toName="image" smart="false"><Label value="nose"/></KeyPointLabels>
  <TextArea name="prompt" toName="image"/>
  <TextArea name="phrase" toName="image" perRegion="true" smart="false"/>
  <TextArea name="absent" toName="image" smart="false"/>
</View>
"""
ORIENTATION = 0x0112
"""EXIF tag."""


@dataclass(frozen=True)
class Object:
    """A label of a region."""

    file_name: str
    label: str
    mask: Mask
    phrase: str


@dataclass
class Sample:
    """What the project holds, in the order of tasks and regions."""

    objects: list[Object] = field(default_factory=list)
    pictures: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """File name -> (H, W, 3), as displayed; 16-bit ones as 8-bit."""
    absent: dict[str, str] = field(default_factory=dict)
    """File name -> the phrase confirmed to be absent."""

    def masks(self, file_name: str) -> list[tuple[str, Mask]]:
        return [(each.label, each.mask) for each in self.objects if each.file_name == file_name]


def filled(*boxes: tuple[int, int, int, int], hw: tuple[int, int] = HW) -> Mask:
    """Boxes (y0, x0, y1, x1); a second box within the first is a hole."""
    mask = np.zeros(hw, dtype=np.bool_)
    for y0, x0, y1, x1 in boxes:
        mask[y0:y1, x0:x1] ^= True
    return mask


def fill_project(server: LabelStudioServer) -> Sample:
    """Creates the project; task 9 is skipped, task 10 has no annotation."""
    server.add_project(PROJECT, FORM)
    sample = Sample()
    for task, (name, data, shown) in enumerate(_pictures(), 1):
        address = _address(server, name, data)
        server.tasks[task] = {"id": task, "project": PROJECT, "data": {"image": address}, "updated_at": ""}
        if task < 9:
            sample.pictures[name] = shown
    names = list(sample.pictures)
    hole, parts = filled((5, 5, 40, 40), (10, 10, 30, 20)), filled((0, 0, 9, 9), (30, 50, 48, 64))
    overlap, specks = filled((20, 15, 44, 60)), np.random.default_rng(0).random(HW) < 0.2
    brushes: dict[int, list[tuple[Mask, tuple[str, ...], str]]] = {
        1: [
            (hole, ("cat",), "The ring"),
            (parts, ("猫",), "two parts"),
            (overlap, ("собака", "cat"), "a dog"),
        ],
        2: [(filled((2, 3, 60, 20), hw=(64, 48)), ("собака",), "собака слева")],
        3: [(filled((10, 10, 30, 30)), ("cat",), "the cat")],
        4: [(specks, ("猫",), "specks")],
        6: [(filled((47, 63, 48, 64)), ("cat",), "one pixel"), (~hole, ("cat",), "the ring")],
        7: [(filled((0, 0, 48, 64)), ("猫",), "all of it")],
    }
    for task in range(1, 9):
        results, name = [], names[task - 1]
        for number, (mask, labels, phrase) in enumerate(brushes.get(task, ())):
            results += region(f"r{number}", phrase, mask)
            results[-2]["value"]["brushlabels"] = list(labels)
            sample.objects += [Object(name, label, mask, phrase) for label in labels]
        if task == 4:
            sample.absent[name] = "a zebra"
            results.append(absent("a zebra"))
        if task == 8:
            results += _shapes(sample, name)
        server.save(task, task, results)
    server.save(9, 9, region("skipped", "skipped", hole), was_cancelled=True)
    return sample


def _shapes(sample: Sample, name: str) -> list[Json]:
    """A polygon, a rectangle and a turned one, and a key point, which is not exported."""
    quarter = [[25, 25], [75, 25], [75, 75], [25, 75]]
    shapes: list[tuple[str, Json, Mask]] = [
        ("polygon", {"points": quarter, "closed": True}, filled((12, 16, 36, 48))),
        ("rectangle", {"x": 50, "y": 50, "width": 25, "height": 25, "rotation": 0}, filled((24, 32, 36, 48))),
        (
            "rectangle",
            {"x": 50, "y": 50, "width": 25, "height": 25, "rotation": 90},
            filled((24, 20, 40, 32)),
        ),
    ]
    results = []
    for number, (tag, value, mask) in enumerate(shapes):
        kind = f"{tag}labels"
        shared: Json = {
            "id": f"shape{number}",
            "to_name": "image",
            "original_width": 64,
            "original_height": 48,
        }
        results.append({**shared, "from_name": tag, "type": kind, "value": {**value, kind: ["cat"]}})
        phrase = {"from_name": "phrase", "type": "textarea", "value": {**value, "text": [f"shape {number}"]}}
        results.append({**shared, **phrase})
        sample.objects.append(Object(name, "cat", mask, f"shape {number}"))
    nose = {**shared, "id": "nose", "from_name": "nose", "type": "keypointlabels"}
    return [*results, {**nose, "value": {"x": 1, "y": 1, "width": 1, "keypointlabels": ["nose"]}}]


def _address(server: LabelStudioServer, name: str, data: bytes) -> str:
    """Uploads, a local file in folders, and a picture in the task's data."""
    if name.startswith("task-"):
        return f"data:image/png;base64,{base64.b64encode(data).decode()}"
    if "/" in name:
        server.files["/data/local-files/"] = data
        return f"/data/local-files/?d={name}"
    server.files[quote(f"/data/upload/{PROJECT}/{name}")] = data
    return f"/data/upload/{PROJECT}/{name}"


def _pictures() -> list[tuple[str, bytes, npt.NDArray[np.uint8]]]:
    """Name, file and displayed pixels of each task's picture."""
    rng = np.random.default_rng(1)
    colours = [rng.integers(0, 255, (*HW, 3), dtype=np.uint8) for _ in range(10)]
    upright = np.kron(rng.integers(0, 255, (8, 6, 3), dtype=np.uint8), np.ones((8, 8, 1), dtype=np.uint8))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    turned = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    grey = colours[3][..., 0]
    deep = grey.astype(np.uint16) * 256 + 17
    return [
        ("00000001-scene.png", _file(Image.fromarray(colours[0]), "PNG"), colours[0]),
        ("00000002-Фото.jpg", _file(turned, "JPEG", exif=exif, quality=95), upright),
        ("00000003-deep.png", _file(Image.fromarray(deep), "PNG"), np.repeat(grey[..., None], 3, axis=2)),
        ("00000004-grey.png", _file(Image.fromarray(grey), "PNG"), np.repeat(grey[..., None], 3, axis=2)),
        ("00000005-empty.png", _file(Image.fromarray(colours[4]), "PNG"), colours[4]),
        ("photos/2024/cat.png", _file(Image.fromarray(colours[5]), "PNG"), colours[5]),
        ("task-7.png", _file(Image.fromarray(colours[6]), "PNG"), colours[6]),
        ("00000008-shapes.png", _file(Image.fromarray(colours[7]), "PNG"), colours[7]),
        ("00000009-skipped.png", _file(Image.fromarray(colours[8]), "PNG"), colours[8]),
        ("00000010-new.png", _file(Image.fromarray(colours[9]), "PNG"), colours[9]),
    ]


def _file(picture: Image.Image, file_format: str, **options: Any) -> bytes:
    data = BytesIO()
    picture.save(data, file_format, **options)
    return data.getvalue()
