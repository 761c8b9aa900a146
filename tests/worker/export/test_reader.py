"""Export: every pixel, every phrase, in a file that pycocotools reads."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import tarfile
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import ijson
import numpy as np
import numpy.typing as npt
import psutil
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from typer.testing import CliRunner, Result

from backend.errors import (
    ExportError,
    LabelingConfigError,
    LabelStudioNotFound,
    LabelStudioUnauthorized,
    LabelStudioUnavailable,
)
from backend.labelstudio.client import LabelStudioClient
from finetune.data.dataset import open_dataset
from sspsam.images.brush_rle import mask_to_brush_rle
from sspsam.images.masks import mask_to_box_xyxy
from tests.terminal import Terminal
from tests.worker.label_studio_server import KEY, LabelStudioServer, absent, prompt, region
from worker.cli.commands import app
from worker.export.coco import CocoWriter, PickledList, RefCocoWriter
from worker.export.reader import ProjectReader, Selection
from worker.export.reader import export as write
from worker.services import Services

Mask = npt.NDArray[np.bool_]
UInt8Image = npt.NDArray[np.uint8]

PROJECT = 2
ORIENTATION = 0x0112
"""EXIF tag."""


@pytest.fixture(autouse=True)
def project(label_studio: LabelStudioServer, image: UInt8Image) -> None:
    label_studio.add_project(PROJECT)
    for task in (1, 2, 3):
        label_studio.add_task(task, PROJECT, image)


def export(services: Services, **selection: Any) -> dict[str, Any]:
    """The COCO file that comes out."""
    path = services.settings.model_dir.parent / "export.json"
    reader = ProjectReader(services.label_studio, PROJECT, services.image_hw, Selection(**selection))
    write(reader, CocoWriter(path, reader))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def command(*options: str) -> Result:
    return CliRunner().invoke(app, ["export", "--project", str(PROJECT), *options])


def shapes() -> dict[str, Mask]:
    """What annotators really leave behind, each with a reason."""
    empty = np.zeros((48, 64), dtype=np.bool_)

    def filled(*boxes: tuple[slice, slice], holes: tuple[tuple[slice, slice], ...] = ()) -> Mask:
        mask = empty.copy()
        for box in boxes:
            mask[box] = True
        for hole in holes:
            mask[hole] = False
        return mask

    return {
        "a hole": filled(np.s_[5:40, 5:40], holes=(np.s_[10:20, 10:20],)),
        "two parts": filled(np.s_[0:9, 0:9], np.s_[30:48, 50:64]),
        "parts that touch at a corner": filled(np.s_[4:8, 4:8], np.s_[8:12, 8:12]),
        "one pixel": filled(np.s_[47:48, 63:64]),
        "the whole image": ~empty,
        "specks": np.random.default_rng(0).random((48, 64)) < 0.3,
    }


def fill(polygons: list[list[float]], like: Mask) -> Mask:
    """As pycocotools fills polygons."""
    return np.asarray(coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *like.shape))), bool)


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


def test_images_can_be_found(services: Services, label_studio: LabelStudioServer, mask: Mask) -> None:
    label_studio.save(1, 1, region("a", "the ring", mask))
    [image] = export(services)["images"]
    assert (image["file_name"], image["width"], image["height"]) == ("00000001-scene.png", 64, 48)
    assert image["coco_url"] == f"{label_studio.url}/data/upload/2/00000001-scene.png"


def test_files_of_the_same_name_are_told_apart(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    for task in (1, 2):
        label_studio.tasks[task]["data"]["image"] = f"https://pictures.example/{task}/scene%201.png?size=big"
        label_studio.save(task, task, region("a", "the ring", mask))
    images = export(services)["images"]
    assert [image["file_name"] for image in images] == ["scene 1.png", "2-scene 1.png"]

    label_studio.annotations[2]["ground_truth"] = True
    [image] = export(services, ground_truth=True)["images"]
    assert image["file_name"] == "2-scene 1.png", "the same whatever is selected"


def test_a_picture_without_an_extension_gets_one_by_its_content(
    services: Services, label_studio: LabelStudioServer, image: UInt8Image, mask: Mask, tmp_path: Path
) -> None:
    label_studio.add_task(4, PROJECT, image, name="scene")
    label_studio.save(1, 4, region("a", "the ring", mask))
    assert command("--out", str(tmp_path / "labels.json")).exit_code == 0
    [entry] = json.loads((tmp_path / "labels.json").read_text())["images"]
    assert entry["file_name"] == "scene.png"


def test_a_task_without_regions_whose_picture_is_gone_is_left_out(
    services: Services, label_studio: LabelStudioServer, tmp_path: Path
) -> None:
    """An image without its size is one that many readers stop at."""
    label_studio.files.clear()
    label_studio.save(1, 1, [absent("a zebra")])
    done = command("--out", str(tmp_path / "labels.json"))
    assert json.loads((tmp_path / "labels.json").read_text())["images"] == []
    assert "task 1 is left out: it has no region, and its picture cannot be read" in done.stderr


def test_labels_that_the_form_has_lost_are_categories_of_every_export(
    services: Services, label_studio: LabelStudioServer, mask: Mask, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = {"created_labels": {"mask": {"object": 1, "old": 1}, "click": {"refine": 4}}}
    monkeypatch.setattr(LabelStudioClient, "project_summary", lambda *_: created)
    label_studio.save(1, 1, region("a", "the ring", mask, "older"))
    label_studio.save(2, 2, region("b", "the ring", mask, "old"))
    names = [
        [each["name"] for each in export(services, **chosen)["categories"]]
        for chosen in ({}, {"ground_truth": True})
    ]
    assert names == [["object", "old", "older"], ["object", "old"]]


def test_categories_are_the_labels(services: Services, label_studio: LabelStudioServer, mask: Mask) -> None:
    results = region("a", "the ring", mask, "thing") + region("b", "a ring", mask, "object")
    label_studio.save(1, 1, [*results, *region("c", "one more", mask, "thing")])
    coco = export(services)
    names = {category["id"]: category["name"] for category in coco["categories"]}
    assert [names[entry["category_id"]] for entry in coco["annotations"]] == ["thing", "object", "thing"]


def test_a_phrase_for_several_masks_is_one_expression(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    label_studio.save(1, 1, region("a", "the rings", mask) + region("b", "the rings", ~mask))
    [expression] = export(services)["referring_expressions"]
    assert (expression["phrase"], expression["annotation_ids"]) == ("the rings", [1, 2])


def test_phrases_that_nothing_fits_are_listed(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    label_studio.save(1, 1, [*region("a", "the ring", mask), absent("a giraffe")])
    label_studio.save(2, 2, [absent("a zebra"), prompt("a lion", "a wolf  ∅ nothing found")])
    coco = export(services)
    assert [(entry["image_id"], entry["phrase"]) for entry in coco["no_target"]] == [
        (1, "a giraffe"),
        (2, "a zebra"),
    ]
    assert [(image["id"], image["width"], image["height"]) for image in coco["images"]] == [
        (1, 64, 48),
        (2, 64, 48),
    ]


def test_phrases_left_in_the_prompt_box_are_counted_not_exported(
    services: Services, label_studio: LabelStudioServer, mask: Mask, tmp_path: Path
) -> None:
    label_studio.save(1, 1, [*region("a", "the ring", mask), prompt("a lion", "a wolf  ∅ nothing found")])

    done = command("--out", str(tmp_path / "labels.json"))

    assert json.loads((tmp_path / "labels.json").read_text())["no_target"] == []
    assert "phrases without a target: 0" in done.output
    assert "2 phrases left in the prompt box" in done.output


def test_masks_on_a_second_image_are_not_exported_under_the_first(
    services: Services, label_studio: LabelStudioServer, mask: Mask, tmp_path: Path
) -> None:
    elsewhere = [result | {"to_name": "second"} for result in region("b", "the dot", mask)]
    label_studio.save(1, 1, [*region("a", "the ring", mask), *elsewhere])

    done = command("--out", str(tmp_path / "labels.json"))

    exported = json.loads((tmp_path / "labels.json").read_text())
    assert [entry["phrase"] for entry in exported["annotations"]] == ["the ring"]
    assert "1 masks on the image “second” are left out" in done.output


def test_annotators_are_kept_apart_and_skipped_tasks_left_out(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    label_studio.save(1, 1, region("a", "the ring", mask))
    label_studio.save(2, 1, region("b", "a ring", mask), completed_by={"id": 9, "email": "b@example.com"})
    label_studio.save(3, 2, region("c", "no", mask), was_cancelled=True)
    coco = export(services)
    assert len(coco["images"]) == 1
    assert [(entry["label_studio_annotation"], entry["completed_by"]) for entry in coco["annotations"]] == [
        (1, 1),
        (2, 9),
    ]


def test_a_mask_that_cannot_be_read_is_named_and_the_others_are_written(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    broken = region("broken", "the dot", mask)
    broken[0]["value"]["rle"] = mask_to_brush_rle(mask)[:20]
    label_studio.save(1, 1, broken + region("a", "the ring", mask))
    assert [entry["region"] for entry in export(services)["annotations"]] == ["a"]
    done = command("--out", str(services.settings.model_dir.parent / "labels.json"))
    assert done.exit_code == 0
    assert "task 1, annotation 1: region broken" in done.stderr


def test_an_empty_project_gives_an_empty_file(services: Services) -> None:
    coco = export(services)
    assert (coco["images"], coco["annotations"], coco["no_target"]) == ([], [], [])


def test_errors_say_what_to_do(
    services: Services, label_studio: LabelStudioServer, environment: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(LabelStudioNotFound, match="has no project 77"):
        ProjectReader(services.label_studio, 77, services.image_hw)
    label_studio.add_project(4, '<View><Text name="t" value="$text"/></View>')
    with pytest.raises(LabelingConfigError, match="<Image>"):
        ProjectReader(services.label_studio, 4, services.image_hw)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"LABEL_STUDIO_URL": "http://127.0.0.1:9"}, LabelStudioUnavailable),
        ({"LABEL_STUDIO_API_KEY": "wrong"}, LabelStudioUnauthorized),
    ],
)
def test_nothing_is_written_when_label_studio_refuses(
    services: Services,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    change: dict[str, str],
    error: type[Exception],
) -> None:
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "labels.json"
    out.write_text("what was there")
    done = command("--out", str(out))
    assert isinstance(done.exception, error)
    assert [path.name for path in tmp_path.glob("*labels*")] == ["labels.json"]
    assert next(iter(change)) in str(done.exception)
    assert out.read_text() == "what was there"


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


@pytest.mark.parametrize("file_format", ["coco", "coco-polygons", "refcoco", "png"])
def test_standard_output_holds_the_export_and_nothing_else(
    services: Services, label_studio: LabelStudioServer, mask: Mask, tmp_path: Path, file_format: str
) -> None:
    """As a container without a folder of the host's gives it out; messages go to standard error."""
    label_studio.save(1, 1, [*region("a", "the ring", mask), absent("a zebra")])
    label_studio.save(2, 1, region("b", "the ring", ~mask))  # several of a task, which is said
    out = tmp_path / "labels"
    assert command("--format", file_format, "--out", str(out)).exit_code == 0
    done = command("--format", file_format, "--out", "-")
    assert done.exit_code == 0, done.output
    assert "masks: 2" in done.stderr
    assert "several annotations" in done.stderr
    if out.is_dir():
        with tarfile.open(fileobj=io.BytesIO(done.stdout_bytes)) as archive:
            archive.extractall(tmp_path / "unpacked", filter="data")
        written = {path.name: path.read_bytes() for path in out.iterdir()}
        unpacked = {path.name: path.read_bytes() for path in (tmp_path / "unpacked").iterdir()}
        assert unpacked.keys() == written.keys()
        for name in written.keys() - {"instances.json"}:  # which has the time of day
            assert unpacked[name] == written[name]
    else:
        whole, streamed = json.loads(out.read_text()), json.loads(done.stdout_bytes)
        assert {**streamed, "info": None} == {**whole, "info": None}


def test_nothing_of_an_export_that_failed_reaches_standard_output(
    services: Services, label_studio: LabelStudioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "refused")
    done = command("--out", "-")
    assert isinstance(done.exception, LabelStudioUnauthorized)
    assert done.stdout_bytes == b""


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


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({}, [1, 2, 3]),
        ({"since": datetime(2026, 1, 1, 0, 2, tzinfo=UTC)}, [2, 3]),
        ({"until": datetime(2026, 1, 1, 0, 2, tzinfo=UTC)}, [1]),
        ({"annotators": frozenset({9})}, [2]),
        ({"ground_truth": True}, [3]),
        ({"ground_truth": True, "annotators": frozenset({9})}, []),
    ],
)
def test_annotations_are_chosen(
    services: Services,
    label_studio: LabelStudioServer,
    mask: Mask,
    selection: dict[str, Any],
    expected: list[int],
) -> None:
    label_studio.save(1, 1, region("a", "the ring", mask))
    label_studio.save(2, 1, region("b", "a ring", mask), completed_by={"id": 9})
    label_studio.save(3, 2, region("c", "the ring", mask), ground_truth=True)

    found = export(services, **selection)["annotations"]

    assert [entry["label_studio_annotation"] for entry in found] == expected


def test_the_command_chooses_and_says_that_annotators_are_not_merged(
    services: Services, label_studio: LabelStudioServer, mask: Mask, tmp_path: Path
) -> None:
    label_studio.save(1, 1, region("a", "the ring", mask))
    label_studio.save(2, 1, region("b", "a ring", mask), completed_by={"id": 9})
    out = str(tmp_path / "labels.json")

    both = command("--out", out)
    one = command("--out", out, "--annotator", "b@example.com", "--since", "2026-01-01")
    nobody = command("--out", out, "--annotator", "c@example.com")

    assert "masks: 2, images: 1" in both.stdout
    assert "1 images have several annotations" in both.stderr
    assert "masks: 1, images: 1" in one.stdout
    assert "several" not in one.stderr
    assert nobody.exit_code == 2
    assert "b@example.com" in nobody.output


@pytest.mark.slow
def test_a_bar_shows_how_far_it_is(
    services: Services, label_studio: LabelStudioServer, mask: Mask, tmp_path: Path
) -> None:
    for number in (1, 2):
        label_studio.save(number, number, region("a", "the ring", mask))

    with Terminal("export", "--project", str(PROJECT), "--out", str(tmp_path / "labels.json")) as terminal:
        assert terminal.wait() == 0

    tasks = len(label_studio.tasks)
    assert f"{tasks}/{tasks}" in terminal.text
    assert "Tasks ━" in terminal.text
    assert "masks: 2, images: 2" in terminal.text


def test_the_models_score_goes_with_its_masks(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    proposed = [{**result, "score": 0.875} for result in region("a", "the ring", mask)]
    label_studio.save(1, 1, proposed + region("b", "a ring", ~mask))

    scores = {
        entry["region"]: entry["score"] for entry in export(services)["annotations"] if "score" in entry
    }

    assert scores == {"a": 0.875}, "one that was painted has none, and no null, at which some readers stop"


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
