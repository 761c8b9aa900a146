"""Export: every pixel, every phrase, in a file that pycocotools reads."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pycocotools.coco import COCO
from typer.testing import CliRunner

from backend.errors import (
    LabelingConfigError,
    LabelStudioNotFound,
    LabelStudioUnauthorized,
    LabelStudioUnavailable,
)
from sspsam.masks import mask_to_brush_rle
from tests.worker.label_studio_server import LabelStudioServer, prompt, region
from worker.commands import app
from worker.export import export_coco
from worker.services import Services

Mask = npt.NDArray[np.bool_]
UInt8Image = npt.NDArray[np.uint8]

PROJECT = 2


@pytest.fixture(autouse=True)
def project(label_studio: LabelStudioServer, image: UInt8Image) -> None:
    label_studio.add_project(PROJECT)
    for task in (1, 2, 3):
        label_studio.add_task(task, PROJECT, image)


def export(services: Services) -> dict[str, Any]:
    return export_coco(services.label_studio, PROJECT, services.image_hw).coco


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
    assert "masks: 6, images: 1, phrases that nothing fits: 0" in done.output
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
    label_studio.save(1, 1, [*region("a", "the ring", mask), prompt("a giraffe")])
    label_studio.save(2, 2, [prompt("a zebra")])
    coco = export(services)
    assert [(entry["image_id"], entry["phrase"]) for entry in coco["no_target"]] == [
        (1, "a giraffe"),
        (2, "a zebra"),
    ]
    assert [(image["id"], image["width"], image["height"]) for image in coco["images"]] == [
        (1, 64, 48),
        (2, 64, 48),
    ]


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
    exported = export_coco(services.label_studio, PROJECT, services.image_hw)
    assert [entry["region"] for entry in exported.coco["annotations"]] == ["a"]
    assert len(exported.problems) == 1
    assert "task 1, annotation 1: region broken" in exported.problems[0]


def test_an_empty_project_gives_an_empty_file(services: Services) -> None:
    coco = export(services)
    assert (coco["images"], coco["annotations"], coco["no_target"]) == ([], [], [])


def test_errors_say_what_to_do(
    services: Services, label_studio: LabelStudioServer, environment: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(LabelStudioNotFound, match="has no project 77"):
        export_coco(services.label_studio, 77, services.image_hw)
    label_studio.add_project(4, '<View><Text name="t" value="$text"/></View>')
    with pytest.raises(LabelingConfigError, match="<Image>"):
        export_coco(services.label_studio, 4, services.image_hw)


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
    done = CliRunner().invoke(app, ["export", "--project", str(PROJECT), "--out", str(out)])
    assert isinstance(done.exception, error)
    assert next(iter(change)) in str(done.exception)
    assert out.read_text() == "what was there"
