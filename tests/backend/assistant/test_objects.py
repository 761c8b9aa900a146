"""Phrases with several objects: a region for each, which keeps its ID and is corrected alone."""

from __future__ import annotations

import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
from flask.testing import FlaskClient

from backend.assistant.object_regions import regions_of
from backend.labelstudio import prompt_text
from backend.labelstudio.annotations import Region, read_annotation
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.labelstudio.predictions import region_id_for
from backend.state.displayed_masks import DisplayedMask
from backend.state.redis_store import RedisStore
from sspsam import Instance, Referent, brush_rle_to_mask, coco_rle_to_mask, mask_to_coco_rle
from sspsam.images.brush_rle import mask_to_brush_rle
from sspsam.images.masks import BoolMask
from tests.backend.assistant.annotators import Annotator
from tests.backend.colours import ColourPredictor, Pixels, as_referent
from tests.backend.editor import Json, ask, click, colour, ids, prompt, status, task, texts

PHRASE = "the red and blue things"
RED_AND_BLUE = colour("red") | colour("blue")


class ObjectPredictor(ColourPredictor):
    """Connected parts are objects, except those left of `from_column`, which it does not find."""

    from_column = 0

    def finish(
        self, decoded: Referent, min_speck: float = 0.0, min_presence: float | None = None
    ) -> Referent:
        mask = decoded.mask.copy()
        mask[:, : self.from_column] = False
        return as_referent(decoded.phrase, mask)

    def split(self, embedding: Pixels, referent: Referent, decode: object) -> list[Instance]:
        _, parts = cv2.connectedComponents(referent.mask.astype(np.uint8))
        from_left = dict.fromkeys(int(part) for part in parts.T.flat if part)
        return [Instance(parts == part, 0.1 * place) for place, part in enumerate(from_left, 1)]


@pytest.fixture
def predictor() -> ObjectPredictor:
    return ObjectPredictor()


def regions(answer: Json) -> dict[str, BoolMask]:
    """ID -> mask of each region of an answer."""
    return {
        result["id"]: brush_rle_to_mask(
            result["value"]["rle"], result["original_height"], result["original_width"]
        )
        for result in answer["result"]
        if result["type"] == "brushlabels"
    }


def test_each_object_is_a_region_with_its_score_and_the_common_phrase(client: FlaskClient) -> None:
    answer = ask(client, prompt(PHRASE))

    found = list(regions(answer).values())
    assert len(found) == 2
    np.testing.assert_array_equal(found[0], colour("red"))
    np.testing.assert_array_equal(found[1], colour("blue"))
    brushes = [result for result in answer["result"] if result["type"] == "brushlabels"]
    assert [brush["score"] for brush in brushes] == [0.1, 0.2]
    assert ids(answer)[0] == region_id_for("2", "1", PHRASE)
    phrases = {r["id"]: r["value"]["text"] for r in answer["result"] if r["from_name"] == "phrase"}
    assert phrases == {region_id: [PHRASE] for region_id in ids(answer)}
    assert texts(answer, "prompt") == []


def test_phrases_that_differ_in_case_are_one(client: FlaskClient) -> None:
    answer = ask(client, prompt("the RED square; The red  Square"))

    assert ids(answer) == [region_id_for("2", "1", "the red square")]
    again = ask(client, prompt("THE RED SQUARE"))
    assert ids(again) == ids(answer)


@pytest.mark.parametrize("extra_params", [{"instances": "together"}, '{"instances": "together"}'])
def test_a_project_may_want_one_region(client: FlaskClient, extra_params: object) -> None:
    client.post("/setup", json={"project": "2.17", "schema": "", "extra_params": extra_params})

    [(region_id, mask)] = regions(ask(client, prompt(PHRASE))).items()

    np.testing.assert_array_equal(mask, RED_AND_BLUE)
    assert region_id == region_id_for("2", "1", PHRASE)


def test_served_objects_know_the_whole_answer(client: FlaskClient, redis_store: RedisStore) -> None:
    answer = ask(client, prompt(f"{PHRASE}; the blue bar"))

    for region_id, mask in regions(answer).items():
        served = redis_store.served(region_id)
        assert served is not None
        np.testing.assert_array_equal(coco_rle_to_mask(served.rle), mask)
        if served.phrase == PHRASE:
            assert served.answer == mask_to_coco_rle(RED_AND_BLUE)
        else:
            assert served.answer is None


def test_ids_follow_the_objects_when_the_phrase_is_asked_again(
    client: FlaskClient, predictor: ObjectPredictor
) -> None:
    """The first object is not found any more: the second keeps its ID, and the first's region is emptied."""
    anna = Annotator(client, 1)
    red_id, blue_id = ids(anna.ask(prompt(PHRASE)))
    anna.save()
    predictor.from_column = 40

    answer = anna.ask(prompt(PHRASE) | {"origin": "form"})

    found = regions(answer)
    assert set(found) == {red_id, blue_id}
    np.testing.assert_array_equal(found[blue_id], colour("blue"))
    assert not found[red_id].any()
    assert texts(answer, "status") == [
        f"One region of the earlier answer for “{PHRASE}” is empty now. Delete it."
    ]
    assert texts(anna.ask(prompt(PHRASE) | {"origin": "form"}, status("x")), "status") != ["x"]


def test_a_deleted_object_is_not_emptied(client: FlaskClient, predictor: ObjectPredictor) -> None:
    anna = Annotator(client, 1)
    red_id, blue_id = ids(anna.ask(prompt(PHRASE)))
    anna.delete(red_id)
    anna.save()
    predictor.from_column = 40

    assert ids(anna.ask(prompt(PHRASE) | {"origin": "form"})) == [blue_id]


def test_the_set_is_replaced_by_one_region_when_objects_are_wanted_together(client: FlaskClient) -> None:
    anna = Annotator(client, 1)
    first, second = ids(anna.ask(prompt(PHRASE)))
    anna.save()
    client.post("/setup", json={"project": "2", "schema": "", "extra_params": {"instances": "together"}})

    found = regions(anna.ask(prompt(PHRASE) | {"origin": "form"}))

    assert {first, second} == set(found)
    whole, empty = sorted(found.values(), key=np.count_nonzero, reverse=True)
    np.testing.assert_array_equal(whole, RED_AND_BLUE)
    assert not empty.any()


POLYGONS = re.sub(
    r'<BrushLabels name="mask".*?</BrushLabels>',
    '<PolygonLabels name="mask" toName="image"><Label value="object"/></PolygonLabels>',
    RECOMMENDED_CONFIG,
    flags=re.DOTALL,
)


def polygons(results: list[Json]) -> dict[str, bool]:
    """ID of each polygon on a form -> whether it has an area."""
    return {
        result["id"]: len({tuple(point) for point in result["value"]["points"]}) > 2
        for result in results
        if result["type"] == "polygonlabels"
    }


def test_a_part_that_is_not_found_any_more_is_emptied(
    client: FlaskClient, predictor: ObjectPredictor
) -> None:
    """In a form of polygons, one region for all objects has a polygon for each part."""
    client.post("/setup", json={"project": "2", "schema": "", "extra_params": {"instances": "together"}})
    anna = Annotator(client, 1, POLYGONS)
    anna.ask(prompt(PHRASE))
    region_id = region_id_for("2", "1", PHRASE)
    assert polygons(anna.results) == {region_id: True, f"{region_id}-part-2": True}
    anna.save()
    predictor.from_column = 40

    answer = anna.ask(prompt(PHRASE) | {"origin": "form"})

    assert polygons(anna.results) == {region_id: True, f"{region_id}-part-2": False}
    assert texts(answer, "status") == [
        f"One region of the earlier answer for “{PHRASE}” is empty now. Delete it."
    ]
    (region,) = read_annotation({"result": anna.results}, LabelingConfig.parse(POLYGONS)).regions
    np.testing.assert_array_equal(region.mask, colour("blue"))


@pytest.mark.parametrize("form", [RECOMMENDED_CONFIG, POLYGONS], ids=["brush", "polygons"])
def test_a_phrase_that_finds_nothing_any_more_empties_its_regions(
    client: FlaskClient, predictor: ObjectPredictor, form: str
) -> None:
    anna = Annotator(client, 1, form)
    config = LabelingConfig.parse(form)
    anna.ask(prompt(f"{PHRASE}; the blue bar"))
    anna.save()
    predictor.from_column = 1000

    answer = anna.ask(prompt(PHRASE) | {"origin": "form"})

    left = read_annotation({"result": anna.results}, config).regions
    assert [region.phrase for region in left] == ["the blue bar"], "which was not asked again"
    assert texts(answer, "prompt") == [prompt_text.with_no_match(PHRASE)]
    (said,) = texts(answer, "status")
    assert "2 regions of earlier answers" in said
    anna.save()
    assert ids(anna.ask(prompt(PHRASE) | {"origin": "form"})) == [], "empty regions are not emptied again"


@pytest.mark.parametrize("form", [RECOMMENDED_CONFIG, POLYGONS], ids=["brush", "polygons"])
def test_an_open_phrase_stays_in_the_box_while_its_region_is_empty(
    client: FlaskClient, predictor: ObjectPredictor, form: str
) -> None:
    anna = Annotator(client, 1, form)
    anna.ask(prompt(PHRASE))
    anna.save()
    predictor.from_column = 1000
    [left] = texts(anna.ask(prompt(PHRASE) | {"origin": "form"}), "prompt") or []
    anna.save()
    predictor.from_column = 0

    answer = anna.ask(prompt(left, "the blue bar"))

    assert texts(answer, "prompt") == [left]


def test_a_mask_is_unedited_whoever_was_shown_the_next_one(
    client: FlaskClient, predictor: ObjectPredictor
) -> None:
    anna, bert = Annotator(client, 1), Annotator(client, 2)
    anna.ask(prompt("the red square"))
    anna.save()
    predictor.from_column = 15
    bert.ask(prompt("the red square"))
    predictor.from_column = 1000

    anna.ask(prompt("the red square") | {"origin": "form"})

    assert drawn(anna) == ()


@pytest.mark.parametrize("from_column", [40, 1000], ids=["one is found", "nothing is found"])
def test_edited_regions_stay_when_their_object_is_not_found_any_more(
    client: FlaskClient, predictor: ObjectPredictor, from_column: int
) -> None:
    """The left object is not found any more, in one case the right one neither."""
    anna = Annotator(client, 1)
    red_id, blue_id = ids(anna.ask(prompt(PHRASE)))
    painted = colour("red").copy()
    painted[:3] = True
    for result in anna.results:
        if result["id"] == red_id and result["type"] == "brushlabels":
            result["value"]["rle"] = mask_to_brush_rle(painted)
    anna.save()
    predictor.from_column = from_column

    answer = anna.ask(prompt(PHRASE) | {"origin": "form"})

    assert red_id not in ids(answer)
    (kept,) = (region for region in drawn(anna) if region.region_id == red_id)
    np.testing.assert_array_equal(kept.mask, painted)
    assert (blue_id in {region.region_id for region in drawn(anna)}) == (from_column == 40)


def test_a_region_that_was_given_another_phrase_stays_when_the_first_finds_nothing(
    client: FlaskClient, predictor: ObjectPredictor
) -> None:
    anna = Annotator(client, 1)
    red_id, blue_id = ids(anna.ask(prompt(PHRASE)))
    for result in anna.results:
        if result["id"] == red_id and result["from_name"] == "phrase":
            result["value"]["text"] = ["the ball"]
    anna.save()
    predictor.from_column = 1000

    assert ids(anna.ask(prompt(PHRASE) | {"origin": "form"})) == [blue_id]
    assert [region.phrase for region in drawn(anna)] == ["the ball"]


def drawn(annotator: Annotator) -> tuple[Region, ...]:
    """The regions with pixels on an annotator's form."""
    return read_annotation({"result": annotator.results}, LabelingConfig.parse(RECOMMENDED_CONFIG)).regions


@pytest.mark.parametrize("saved", [True, False], ids=["in the draft", "displayed since"])
def test_a_click_concerns_all_parts_of_an_object(client: FlaskClient, saved: bool) -> None:
    """The blue part is removed: the object has one part left, and its second polygon is emptied."""
    client.post("/setup", json={"project": "2", "schema": "", "extra_params": {"instances": "together"}})
    anna = Annotator(client, 1, POLYGONS)
    anna.save()
    anna.ask(prompt(PHRASE))
    if saved:
        anna.save()

    answer = anna.ask(click(56, 20, "click00001", positive=False))

    region_id = region_id_for("2", "1", PHRASE)
    assert polygons(answer["result"]) == {region_id: True, f"{region_id}-part-2": False}
    (region,) = read_annotation({"result": anna.results}, LabelingConfig.parse(POLYGONS)).regions
    assert region.mask[colour("red")].all()
    assert not region.mask[colour("blue")].any()


def test_a_click_concerns_one_object(client: FlaskClient, predictor: ObjectPredictor) -> None:
    """The model is asked without the phrase, which would find the other object as well."""
    anna = Annotator(client, 1)
    red_id, _ = ids(anna.ask(prompt(PHRASE)))
    anna.save()
    predictor.asked.clear()

    answer = anna.ask(click(12, 12, "click00001", positive=False))

    changed = regions(answer)
    assert set(changed) <= {red_id}
    assert not any(mask[colour("blue")].any() for mask in changed.values())
    assert set(predictor.asked) == {""}


def test_a_batch_has_a_region_for_each_object(client: FlaskClient) -> None:
    body = {
        "tasks": [task(data={"image": task()["data"]["image"], "phrase": PHRASE})],
        "project": "2",
        "label_config": RECOMMENDED_CONFIG,
        "params": {},
    }
    answer = client.post("/predict", json=body).json["results"][0]

    assert len(set(ids(answer))) == 2


SQUARES = [np.zeros((40, 60), bool) for _ in range(3)]
for _place, _square in enumerate(SQUARES):
    _square[10:20, 20 * _place : 20 * _place + 10] = True


def dogs(objects: list[BoolMask]) -> Referent:
    instances = [Instance(mask, 1) for mask in objects]
    return replace(as_referent("dogs", np.any(objects, axis=0)), find_instances=lambda: instances)


@pytest.mark.parametrize(
    ("before", "now", "kept"),
    [
        ([0, 1, 2], [0, 1, 2], {0: 0, 1: 1, 2: 2}),
        ([0, 1, 2], [1, 2], {0: 1, 1: 2}),
        ([1, 2], [0, 1, 2], {1: 0, 2: 1}),
        ([2, 0], [0, 2], {0: 1, 1: 0}),
        ([0], [2], {0: 0}),
    ],
    ids=["the same", "one less", "one more", "another order", "another object"],
)
def test_an_id_follows_its_object(before: list[int], now: list[int], kept: dict[int, int]) -> None:
    names = [region_id_for("7", place, "dogs") for place in ("3", "3/2", "3/3", "3/4")]
    shown = [
        DisplayedMask(names[place], "dogs", mask_to_coco_rle(SQUARES[square]))
        for place, square in enumerate(before)
    ]
    referent = dogs([SQUARES[square] for square in now])

    found = [region.region_id for region in regions_of(referent, "7", "3", {}, shown)]

    assert len(set(found)) == len(now)
    assert {place: names.index(found[place]) for place in kept} == kept


def test_a_renamed_region_keeps_its_phrase() -> None:
    referent = dogs(SQUARES[:2])
    second = region_id_for("7", "3/2", "dogs")

    found = [region.region_id for region in regions_of(referent, "7", "3", {second: "a cat"})]

    assert found == [region_id_for("7", "3", "dogs"), region_id_for("7", "3/3", "dogs")]
