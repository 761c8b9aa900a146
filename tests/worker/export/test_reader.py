"""Export: which tasks, regions and phrases of a project it reads."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backend.errors import (
    LabelingConfigError,
    LabelStudioNotFound,
    LabelStudioUnauthorized,
    LabelStudioUnavailable,
)
from backend.labelstudio.client import LabelStudioClient
from sspsam.images.brush_rle import mask_to_brush_rle
from tests.worker.export.exporting import PROJECT, Mask, UInt8Image, command, export
from tests.worker.label_studio_server import LabelStudioServer, absent, prompt, region
from worker.export.reader import ProjectReader
from worker.services import Services

pytestmark = pytest.mark.usefixtures("project")


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


def test_the_models_score_goes_with_its_masks(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    proposed = [{**result, "score": 0.875} for result in region("a", "the ring", mask)]
    label_studio.save(1, 1, proposed + region("b", "a ring", ~mask))

    scores = {
        entry["region"]: entry["score"] for entry in export(services)["annotations"] if "score" in entry
    }

    assert scores == {"a": 0.875}, "one that was painted has none, and no null, at which some readers stop"
