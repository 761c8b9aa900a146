"""The loop through the API of a real Label Studio: phrase, correction, training, export."""

import json
from dataclasses import replace
from pathlib import Path
from threading import Timer

import numpy as np
import requests
from pycocotools.coco import COCO

from backend.labelstudio import prompt_text
from backend.labelstudio.predictions import ProposedRegion, region_results
from sspsam.images.brush_rle import brush_rle_to_mask
from sspsam.images.masks import BoolMask, coco_rle_to_mask
from sspsam.version_store.store import VersionStore
from tests.annotator_client import AnnotatorClient
from tests.integration.project import (
    BROWSER,
    CONFIG,
    POLL_S,
    TRAINING_WAIT_S,
    WAIT_S,
    Project,
    mask_of,
    ring,
    size_of,
    sspsam,
)
from tests.waiting import wait_until


def test_every_phrase_gets_a_mask_or_stays_in_the_box(project: Project) -> None:
    phrases = {"the crab", "phone on the left", "second shirt from the top"}
    results = project.ask(project.tasks[0], *phrases)
    masks = {result["id"]: result for result in results if result["type"] == "brushlabels"}
    under_regions = {
        result["id"]: result["value"]["text"][0] for result in results if result["from_name"] == "phrase"
    }
    in_the_box = {
        prompt_text.plain_phrase(text)
        for result in results
        if result["from_name"] == "prompt"
        for text in result["value"]["text"]
    }
    assert masks.keys() == under_regions.keys()
    assert set(under_regions.values()) | in_the_box == phrases
    assert not set(under_regions.values()) & in_the_box
    size = size_of(project, project.tasks[0])
    for result in masks.values():
        assert (result["original_height"], result["original_width"]) == size
        assert brush_rle_to_mask(result["value"]["rle"], *size).any()


def test_what_the_editor_asks_after_a_save_is_answered_with_nothing(project: Project) -> None:
    answer = project.client.interactive_predict(project.backend["id"], project.tasks[0], {"result": []})
    assert answer["data"]["result"] == []


def place_on(mask: BoolMask) -> tuple[float, float]:
    """A pixel of a mask, in percent of the picture."""
    rows, columns = np.nonzero(mask)
    height, width = mask.shape
    return 100 * (columns[0] + 0.5) / width, 100 * (rows[0] + 0.5) / height


def test_clicks_correct_a_phrases_mask_in_place(project: Project) -> None:
    task = project.tasks[3]
    results = project.ask(task, "the crab")
    mask, phrase = (one for one in results if one["from_name"].partition("-")[0] in ("mask", "phrase"))
    draft = project.client.save_draft(task, [mask, phrase])
    x, y = place_on(mask_of(mask))
    clicks = [
        project.click(task, x, y, "one", positive=False),
        project.click(task, x, y, "two"),
    ]

    alone = project.send(task, clicks[0])
    project.client.update_draft(draft["id"], alone)
    with_auto_accept_off = project.send(task, *clicks)

    for results in (alone, with_auto_accept_off):
        assert [(one["id"], one["from_name"]) for one in results[:2]] == [
            (mask["id"], mask["from_name"]),
            (mask["id"], "phrase"),
        ]
        assert results[1]["value"] == phrase["value"]
    row, column = (values[0] for values in np.nonzero(mask_of(mask)))
    assert not mask_of(alone[0])[row, column]
    assert mask_of(alone[0]).any()


def test_a_click_finds_its_annotation_in_the_draft_that_follows(project: Project) -> None:
    """The first draft comes seconds after the first change; until then nothing says whose click it is."""
    task = project.tasks[2]
    (mask, phrase) = project.ask(task, "the crab")[:2]
    click = project.click(task, *place_on(mask_of(mask)), "first")
    saving = Timer(1.0, project.client.save_draft, (task, [mask, phrase, click]))
    saving.start()

    answer = project.send(task, click)

    saving.join()
    assert [(one["id"], one["from_name"]) for one in answer[:2]] == [
        (mask["id"], mask["from_name"]),
        (mask["id"], "phrase"),
    ]


def test_two_annotators_of_a_task_are_blind_to_each_other(project: Project) -> None:
    task = project.tasks[1]
    anna = project.client
    bela = replace(project, client=anna.invite("bela@example.com", "another password"))
    backend = int(project.backend["id"])
    mask, phrase = project.ask(task, "the crab")[:2]
    x, y = place_on(mask_of(mask))

    def click(annotator: AnnotatorClient, name: str) -> list[str]:
        one = project.click(task, x, y, name)
        answer = annotator.interactive_predict(backend, task, {"result": [one]})["data"]["result"]
        assert mask_of(answer[0]).any()
        return [one["id"] for one in answer if one["from_name"].partition("-")[0] in ("mask", "phrase")]

    Timer(0.5, bela.client.save_draft, (task, [project.click(task, x, y, "his first")])).start()
    unsaved = click(bela.client, "his first")
    draft = anna.save_draft(task, [mask, phrase])
    hers = click(anna, "her first")
    drafted = click(bela.client, "his second")
    anna.create_annotation(task, [mask, phrase])
    saved = click(bela.client, "his third")

    assert hers == [mask["id"], mask["id"]], "hers is refined, with its phrase"
    assert draft["id"]
    for his in (unsaved, drafted, saved):
        assert len(his) == 1, "a new object without a phrase"
        assert his != hers[:1]


def test_leftover_clicks_are_neither_records_nor_exported(project: Project, tmp_path: Path) -> None:
    task = project.tasks[3]
    mask = ring(*size_of(project, task))
    results = region_results(ProposedRegion("drawn", "the ring", mask, score=0.5), CONFIG)
    click = project.click(task, 10, 10, "left over")
    part = {
        **project.click(task, 0, 0, "drawn"),
        "value": {**results[0]["value"], "keypointlabels": ["refine"]},
    }
    project.client.create_annotation(task, [click, *results, part])
    wait_until(lambda: len(project.records) == 1, "the record", WAIT_S, POLL_S)

    sspsam(project, "export", "--project", str(project.number), "--out", str(tmp_path / "labels.json"))

    (annotation,) = json.loads((tmp_path / "labels.json").read_text())["annotations"]
    assert annotation["phrase"] == "the ring"
    assert np.array_equal(coco_rle_to_mask(annotation["segmentation"]), mask)


def test_a_phrase_that_is_too_long_is_answered_on_the_form(project: Project) -> None:
    results = project.ask(project.tasks[0], "very " * 80 + "long")
    texts = " ".join(text for result in results for text in result["value"].get("text", []))
    assert "77" in texts
    assert not [result for result in results if result["type"] == "brushlabels"]


def test_a_saved_annotation_becomes_a_record_follows_its_changes_and_goes(project: Project) -> None:
    task = project.tasks[1]
    mask = ring(*size_of(project, task))
    number = project.save(task, "the ring", mask)
    wait_until(lambda: len(project.records) == 1, "the record", WAIT_S, POLL_S)
    (record,) = project.records
    assert (record.phrase, record.task, record.annotation) == ("the ring", task, number)
    assert record.mask_rle is not None
    assert np.array_equal(coco_rle_to_mask(record.mask_rle), mask)
    assert (project.service.model_dir / "images" / record.image_sha256).exists()

    changed = ~mask
    results = region_results(ProposedRegion("drawn", "all but the ring", changed, score=0.5), CONFIG)
    project.client.update_annotation(number, results)
    wait_until(
        lambda: [one.phrase for one in project.records] == ["all but the ring"], "the change", WAIT_S, POLL_S
    )
    (record,) = project.records
    assert record.mask_rle is not None
    assert np.array_equal(coco_rle_to_mask(record.mask_rle), changed)

    project.client.delete_annotation(number)
    wait_until(lambda: project.records == [], "that it is forgotten", WAIT_S, POLL_S)


def test_a_mask_that_was_taken_as_it_came_is_no_correction(project: Project) -> None:
    task = project.tasks[2]
    results = [
        result
        for result in project.ask(task, "the fish")
        if result["from_name"].partition("-")[0] in ("mask", "phrase")
    ]
    assert results, "the tiny model finds a mask for anything"
    before = corrections(project)
    number = int(project.client.create_annotation(task, results)["id"])
    wait_until(lambda: len(project.records) == 1, "the record", WAIT_S, POLL_S)
    assert not project.records[0].corrected
    assert project.records[0].served_version == "ssp-sam-test-base"
    accepted = {"accepted": before["accepted"] + 1, "edited": before["edited"]}
    wait_until(lambda: corrections(project) == accepted, "that it is counted", WAIT_S, POLL_S)

    region = next(result for result in results if result["type"] == "brushlabels")
    mask = brush_rle_to_mask(region["value"]["rle"], region["original_height"], region["original_width"])
    mask[: mask.shape[0] // 2] ^= True
    corrected = region_results(ProposedRegion(region["id"], "the fish", mask, score=0.5), CONFIG)
    project.client.update_annotation(number, corrected)
    wait_until(lambda: [one.corrected for one in project.records] == [True], "the correction", WAIT_S, POLL_S)
    edited = {"accepted": before["accepted"], "edited": before["edited"] + 1}
    wait_until(lambda: corrections(project) == edited, "that it is counted again", WAIT_S, POLL_S)
    page = requests.get(project.service.url, headers=BROWSER, timeout=WAIT_S).text
    assert '<table class="corrections">' in page


def corrections(project: Project) -> dict[str, float]:
    """What became of the masks that the first version proposed, as Prometheus reads it."""
    text = requests.get(f"{project.service.url}/metrics", timeout=WAIT_S).text
    series = 'sspsam_corrections{{label="object",outcome="{0}",version="ssp-sam-test-base"}} '
    values = {name: series.format(name) for name in ("accepted", "edited")}
    lines = text.splitlines()
    return {
        name: float(next((line for line in lines if line.startswith(start)), "0").rpartition(" ")[2])
        for name, start in values.items()
    }


def test_an_event_without_the_secret_is_refused(project: Project) -> None:
    event = {"action": "ANNOTATION_CREATED", "annotation": {"id": 1}, "project": {"id": project.number}}
    answer = requests.post(f"{project.service.url}/webhook", json=event, timeout=WAIT_S)
    assert answer.status_code == 401
    assert "X-ML-Secret" in answer.json()["error"]


def test_labels_leave_as_coco_pixel_for_pixel(project: Project, tmp_path: Path) -> None:
    masks = {}
    for task in project.tasks:
        masks[task] = ring(*size_of(project, task))
        project.save(task, f"the ring of {task}", masks[task])
    out = tmp_path / "labels.json"
    sspsam(project, "export", "--project", str(project.number), "--format", "coco", "--out", str(out))
    exported = COCO(str(out))
    tasks = {image["id"]: image["label_studio_task"] for image in exported.imgs.values()}
    assert len(exported.anns) == len(masks)
    for annotation in exported.anns.values():
        task = tasks[annotation["image_id"]]
        assert np.array_equal(exported.annToMask(annotation), masks[task])
        assert annotation["phrase"] == f"the ring of {task}"


def test_start_training_makes_a_version_that_serves_only_if_it_is_better(project: Project) -> None:
    for task in project.tasks:
        height, width = size_of(project, task)
        mask = np.zeros((height, width), bool)
        mask[:, : width // 2] = True
        project.save(task, "the left half", mask)
    wait_until(lambda: len(project.records) == len(project.tasks), "the records", WAIT_S, POLL_S)
    store = VersionStore(project.service.model_dir, "ssp-sam-test")
    before = len(store.list())
    project.client.start_training(int(project.backend["id"]))

    def judged() -> bool:
        return len(store.list()) > before and store.list()[-1].status != "candidate"

    wait_until(judged, "a judged version", TRAINING_WAIT_S, POLL_S)
    card = store.list()[-1]
    assert card.metrics["candidate"] is not None
    assert "gIoU" in card.reason
    serving = card.version_id if card.status == "promoted" else "ssp-sam-test-base"
    line = store.line_of(project.number)
    wait_until(lambda: store.current(line) == serving, "that it serves", WAIT_S, POLL_S)
    wait_until(lambda: project.backend["model_version"] == serving, "Label Studio's word", WAIT_S, POLL_S)
    page = requests.get(project.service.url, headers=BROWSER, timeout=WAIT_S).text
    assert serving in page
    listed = sspsam(project, "versions", "list")
    assert card.version_id in listed
    assert card.status in listed
