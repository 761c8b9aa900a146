"""Written files: every pixel and every phrase, as pycocotools and RefCOCO readers find them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import ijson
import numpy as np
import psutil
import pytest
from PIL import Image
from pycocotools.coco import COCO
from typer.testing import CliRunner

from backend.errors import ExportError
from backend.labelstudio.client import LabelStudioClient
from backend.worker_requests import EXPORTS
from finetune.data.dataset import open_dataset
from sspsam.images.masks import mask_to_box_xyxy
from tests.worker.export.exporting import PROJECT, Mask, UInt8Image, command, fill, shapes
from tests.worker.label_studio_server import KEY, LabelStudioServer, absent, region
from worker import requested_jobs
from worker.cli.commands import app
from worker.export.coco import PickledList, RefCocoWriter
from worker.export.reader import ProjectReader
from worker.export.reader import export as write
from worker.services import Services

pytestmark = pytest.mark.usefixtures("project")

ORIENTATION = 0x0112
"""EXIF tag."""


def test_pycocotools_gives_back_every_pixel(
    services: Services, label_studio: LabelStudioServer, tmp_path: Path
) -> None:
    masks = shapes()
    results = [result for name, mask in masks.items() for result in region(f"id of {name}", name, mask)]
    label_studio.save(1, 1, results)
    out = tmp_path / "labels.json"
    done = CliRunner().invoke(
        app, ["export", "--project", str(PROJECT), "--format", "coco", "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert "masks: 6, images: 1, phrases without a target: 0" in done.output
    assert [path.name for path in tmp_path.glob("*.json*")] == ["labels.json"]

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(out))
    assert len(coco.getAnnIds()) == len(masks)
    for entry in coco.loadAnns(coco.getAnnIds()):
        expected = masks[entry["phrase"]]
        np.testing.assert_array_equal(coco.annToMask(entry).astype(bool), expected)
        assert entry["region"] == f"id of {entry['phrase']}"
        assert entry["area"] == expected.sum()
        x, y, width, height = (int(side) for side in entry["bbox"])
        inside = np.zeros_like(expected)
        inside[y : y + height, x : x + width] = True
        assert not (expected & ~inside).any()
        assert expected[y].any()
        assert expected[:, x].any()
        assert expected[y + height - 1].any()
        assert expected[:, x + width - 1].any()


def test_polygons_are_filled_to_the_same_pixels(
    services: Services, label_studio: LabelStudioServer, tmp_path: Path
) -> None:
    masks = shapes()
    results = [result for name, mask in masks.items() for result in region(name, name, mask)]
    label_studio.save(1, 1, results)
    done = command("--format", "coco-polygons", "--out", str(tmp_path / "labels.json"))
    assert done.exit_code == 0, done.output

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "labels.json"))
    for entry in coco.loadAnns(coco.getAnnIds()):
        assert isinstance(entry["segmentation"], list)
        np.testing.assert_array_equal(coco.annToMask(entry).astype(bool), masks[entry["phrase"]])


def test_refcocos_layout(
    services: Services, label_studio: LabelStudioServer, mask: Mask, tmp_path: Path
) -> None:
    two = region("b", "The rings", mask) + region("c", "The rings", ~mask)
    label_studio.save(1, 1, [*region("a", "the ring", mask, "ring"), *two, absent("a zebra")])
    out = tmp_path / "refcoco"
    for _ in range(2):
        done = command("--format", "refcoco", "--out", str(out), "--split", "val")
        assert done.exit_code == 0, done.output

    assert sorted(path.name for path in out.iterdir()) == ["grefs(unc).json", "instances.json", "refs(unc).p"]
    instances = json.loads((out / "instances.json").read_text())
    refs = pickle.loads((out / "refs(unc).p").read_bytes())
    grefs = json.loads((out / "grefs(unc).json").read_text())
    by_id = {entry["id"]: entry for entry in instances["annotations"]}
    (ref,) = refs
    assert (ref["split"], ref["image_id"], ref["file_name"]) == ("val", 1, "00000001-scene.png")
    assert by_id[ref["ann_id"]]["region"] == "a"
    assert by_id[ref["ann_id"]]["category_id"] == ref["category_id"]
    assert ref["sentences"] == [
        {"tokens": ["the", "ring"], "raw": "the ring", "sent": "the ring", "sent_id": ref["ref_id"]}
    ]
    found = {entry["sentences"][0]["raw"]: entry["ann_id"] for entry in grefs}
    assert found == {"the ring": [1], "The rings": [2, 3], "a zebra": [-1]}
    np.testing.assert_array_equal(fill(by_id[3]["segmentation"], ~mask), ~mask)


def test_refcocos_layout_is_read_back_to_the_pixel(
    services: Services, label_studio: LabelStudioServer, image: UInt8Image, tmp_path: Path
) -> None:
    """By the readers of the published data sets, with the pictures where they look for them.

    Cameras store pictures turned, and note it: Label Studio shows them upright, and so masks lie.
    """
    masks = shapes()
    two = region("b", "the rings", masks["a hole"]) + region("c", "the rings", masks["one pixel"])
    label_studio.save(1, 1, [part for name, mask in masks.items() for part in region(name, name, mask)])
    label_studio.save(2, 2, [*two, absent("a zebra")])
    for name in ("refcoco", "grefcoco"):
        done = command("--format", "refcoco", "--out", str(tmp_path / name), "--split", "val")
        assert done.exit_code == 0, done.output
    pictures = tmp_path / "images" / "train2014"
    pictures.mkdir(parents=True)
    entries = json.loads((tmp_path / "refcoco" / "instances.json").read_text())["images"]
    for entry, turned in zip(entries, (Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_90), strict=True):
        exif = Image.Exif()
        exif[ORIENTATION] = {Image.Transpose.ROTATE_180: 3, Image.Transpose.ROTATE_90: 6}[turned]
        Image.fromarray(image).transpose(turned).save(pictures / entry["file_name"], exif=exif)

    for name, expected in {
        "refcoco": masks,
        "grefcoco": {
            **masks,
            "the rings": masks["a hole"] | masks["one pixel"],
            "a zebra": masks["a hole"] & False,
        },
    }.items():
        dataset = open_dataset(f"{name}/val?root={tmp_path}")
        samples = {sample.phrase: sample for sample in map(dataset.__getitem__, range(len(dataset)))}
        assert samples.keys() == expected.keys()
        for phrase, sample in samples.items():
            np.testing.assert_array_equal(sample.mask, expected[phrase], err_msg=phrase)
            np.testing.assert_array_equal(sample.image, image)
            if sample.has_target:
                assert sample.box_xyxy == mask_to_box_xyxy(expected[phrase])


def test_a_list_is_pickled_value_by_value(tmp_path: Path) -> None:
    values: list[Any] = [{"a": [1, -1, None], "b": {"c": "é" * 300}}, {}, {"a": "b", "b": "b"}]
    for count in (0, 1, 3):
        pickled = PickledList(tmp_path / "refs")
        for value in values[:count]:
            pickled.append(value)
        pickled.close()
        assert pickle.loads((tmp_path / "refs").read_bytes()) == values[:count]


def test_pictures_of_masks(
    services: Services, label_studio: LabelStudioServer, mask: Mask, tmp_path: Path
) -> None:
    label_studio.save(4, 1, [*region("../a b", "the ring", mask), absent("a zebra")])
    out = tmp_path / "masks"
    assert command("--format", "png", "--out", str(out)).exit_code == 0

    ring, zebra = (json.loads(line) for line in (out / "masks.jsonl").read_text().splitlines())
    assert ring["file"] == "task-1-annotation-4-0-___a_b.png"
    with Image.open(out / ring["file"]) as picture:
        np.testing.assert_array_equal(np.array(picture, dtype=bool), mask)
    assert (ring["phrase"], ring["region"], ring["completed_by"]) == ("the ring", "../a b", 1)
    assert (zebra["file"], zebra["phrase"], zebra["image"]) == (None, "a zebra", "00000001-scene.png")
    again = command("--format", "png", "--out", str(out))
    assert isinstance(again.exception, ExportError)
    assert sorted(path.name for path in tmp_path.iterdir() if "masks" in path.name) == ["masks"]


class ManyTasks(LabelStudioServer):
    """A project of TASKS tasks, each with the same REGIONS regions, made when they are asked for."""

    TASKS, REGIONS = 500, 200

    def _page(self, project: int, page: int, size: int, query: str) -> dict[str, Any] | None:
        numbers = range((page - 1) * size, min(page * size, self.TASKS))
        return {"tasks": [self._task(number) for number in numbers], "total": self.TASKS} if numbers else None

    def _task(self, number: int) -> dict[str, Any]:
        annotation = {"id": number, "result": self.results, "completed_by": 1}
        return {"id": number, "data": {"image": f"/{number}.png"}, "annotations": [annotation]}

    @cached_property
    def results(self) -> list[dict[str, Any]]:
        mask = np.zeros((6, 8), dtype=np.bool_)
        mask[2:4, 2:5] = True
        return [result for name in range(self.REGIONS) for result in region(str(name), f"the {name}.", mask)]


@pytest.mark.slow
def test_a_hundred_thousand_regions_stream(tmp_path: Path) -> None:
    """1 kB kept of each region would be 100 MB; a page of tasks, as parsed JSON, is some ten."""
    process, resident = psutil.Process(), list[int]()
    with ManyTasks() as server:
        server.add_project(PROJECT)
        reader = ProjectReader(LabelStudioClient(server.url, KEY), PROJECT, lambda value, task: (6, 8))
        summary = write(
            reader,
            RefCocoWriter(tmp_path / "refcoco", reader),
            lambda: resident.append(process.memory_info().rss),
        )

    assert summary.masks == 100_000
    warm = ManyTasks.TASKS // 10
    assert max(resident[warm:]) - max(resident[:warm]) < 40e6
    with (tmp_path / "refcoco" / "instances.json").open("rb") as file:
        assert sum(1 for _ in ijson.items(file, "annotations.item.id")) == 100_000


def test_the_console_s_exports_need_no_room_in_the_system_s_temporary_folder(
    services: Services, label_studio: LabelStudioServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Which is small in containers; and what a killed export has left goes with the next one."""
    label_studio.save(1, 1, region("a", "the ring", next(iter(shapes().values()))))
    folder = services.settings.model_dir / EXPORTS / str(PROJECT)
    left, current = folder / ".sspsam-export-left", folder / ".sspsam-export-current"
    for staged in (left, current):
        (staged / "labels").mkdir(parents=True)
    os.utime(left, (0, 0))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nothing"))
    result = requested_jobs.export_project(PROJECT, "png")
    assert isinstance(result, dict)
    assert (folder / result["file"]).is_file()
    assert {path.name for path in folder.iterdir()} == {result["file"], current.name}
