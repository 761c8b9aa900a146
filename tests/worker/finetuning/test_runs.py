"""Runs: frozen data, excluded samples, and resuming after a crash. The training itself: test_finetune.py."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data.dataset import open_dataset
from finetune.data.records import RefRecord, read_records, write_records
from sspsam.checkpoints.load import write_tensors
from sspsam.images.masks import mask_to_coco_rle
from sspsam.presets import PRESETS
from sspsam.version_store.store import ForeignVersionError, VersionCard
from tests.sspsam.published_files import golden_bundle
from worker import jobs
from worker.finetuning.recipes import RECIPES, Recipe, base_validation, train_config
from worker.finetuning.runs import (
    HELD_OUT_FILE,
    STOPPING_FILE,
    TRAIN_FILE,
    UNANSWERED_FILE,
    Run,
    base_of,
    find_version,
    is_of_line,
    learned_samples,
    prepare_run,
    run_folder,
    run_id_for,
    run_of,
)
from worker.finetuning.training import RunError, judge_candidate, keep_usable, perform
from worker.lines import Line, Side, load_split, merge_splits, save_split
from worker.services import Services

PROJECT = 8
LINE = Line("project-8", (PROJECT,))


def record(number: int, images: Path, **changes: object) -> RefRecord:
    """A hand-drawn mask on an image of its own, whose file is put into the folder."""
    data = BytesIO()
    Image.fromarray(np.full((6, 8, 3), number, dtype=np.uint8)).save(data, "PNG")
    digest = hashlib.sha256(data.getvalue()).hexdigest()
    images.mkdir(parents=True, exist_ok=True)
    (images / digest).write_bytes(data.getvalue())
    mask = np.zeros((6, 8), dtype=np.bool_)
    mask[:3] = True
    made = RefRecord(
        image_sha256=digest,
        image_url="/data/upload/1/a.png",
        image_hw=(6, 8),
        phrase=f"thing {number}",
        mask_rle=mask_to_coco_rle(mask),
        project=PROJECT,
        task=number,
        annotation=number,
        region="r",
        updated_at="2026-01-01T00:00:00Z",
    )
    return replace(made, **changes)


def prepare(services: Services, count: int = 4) -> Run:
    records = [record(number, services.settings.images_dir) for number in range(count)]
    sides: dict[str, Side] = {it.image_sha256: "held-out" if it.task == 0 else "train" for it in records}
    return prepare_run(services.settings.model_dir, services.store, LINE, records, sides)


def test_a_run_is_frozen_and_named_by_what_it_is_made_of(services: Services) -> None:
    run = prepare(services)
    assert run == prepare(services)
    assert run.run_id == f"finetune-{PROJECT}-{run.digest[:16]}-ssp-sam-test-base"
    assert prepare(services, count=5).run_id != run.run_id
    folder = run_folder(services.settings.model_dir, run.run_id)
    assert Run.read(folder) == run
    assert len(read_records(folder / TRAIN_FILE)) == 3
    assert len(read_records(folder / HELD_OUT_FILE)) == 1
    assert sorted(load_split(services.settings.model_dir, LINE.name).values()) == ["held-out", *["train"] * 4]


def test_masks_that_were_accepted_are_learned_and_measured_on(services: Services) -> None:
    images = services.settings.images_dir
    accepted = [replace(it, served_rle=it.mask_rle) for it in (record(number, images) for number in range(2))]
    sides: dict[str, Side] = {accepted[0].image_sha256: "train", accepted[1].image_sha256: "held-out"}
    run = prepare_run(services.settings.model_dir, services.store, LINE, accepted, sides)
    folder = run_folder(services.settings.model_dir, run.run_id)
    assert len(read_records(folder / TRAIN_FILE)) == 1
    assert [it.image_sha256 for it in read_records(folder / HELD_OUT_FILE)] == [accepted[1].image_sha256]


def test_a_run_knows_all_phrases_asked_and_the_unanswered_ones_to_ask_again(services: Services) -> None:
    images = services.settings.images_dir
    records = [record(number, images) for number in range(4)]
    sides: dict[str, Side] = {it.image_sha256: "held-out" if it.task == 0 else "train" for it in records}
    left = [replace(it, phrase="left", mask_rle=None, region=None, confirmed=False) for it in records[:3]]
    run = prepare_run(services.settings.model_dir, services.store, LINE, records, sides, unanswered=left)
    assert run.asked == {str(PROJECT): {"added": 4, "unanswered": 3}}
    folder = run_folder(services.settings.model_dir, run.run_id)
    assert Run.read(folder) == run
    assert read_records(folder / UNANSWERED_FILE) == left[:1], "those on held-out images"
    assert run.run_id == prepare(services).run_id, "no label, so no other data to learn from"


def test_what_cannot_be_read_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = tmp_path / "images"
    good, gone, damaged, other_size, too_long = (record(number, images) for number in range(5))
    (images / gone.image_sha256).unlink()
    (images / damaged.image_sha256).write_bytes(b"no picture")
    smaller = mask_to_coco_rle(np.ones((5, 8), dtype=np.bool_))
    other_size = replace(other_size, image_hw=(5, 8), mask_rle=smaller)
    too_long = replace(too_long, phrase="word " * 80)
    write_records(tmp_path / "r.jsonl", [good, gone, damaged, other_size, too_long])
    with caplog.at_level(logging.WARNING):
        keep_usable(tmp_path / "r.jsonl", images)
    assert read_records(tmp_path / "r.jsonl") == [good]
    for left_out in (gone, damaged, other_size, too_long):
        assert left_out.sample_id in caplog.text


def test_a_run_with_nothing_left_is_an_error(tmp_path: Path) -> None:
    write_records(tmp_path / "r.jsonl", [record(1, tmp_path / "images", phrase="word " * 80)])
    with pytest.raises(RunError, match=r"no sample of r\.jsonl"):
        keep_usable(tmp_path / "r.jsonl", tmp_path / "images")


@pytest.mark.parametrize(("samples", "steps"), [(1, 60), (6, 60), (20, 200), (1000, 600)])
def test_few_samples_are_seen_a_few_times(samples: int, steps: int) -> None:
    assert Recipe().steps(samples) == steps


def test_the_training_starts_from_the_version_that_serves(services: Services) -> None:
    card = services.store.publish({"w": torch.ones(1)}, VersionCard(), {})
    services.store.promote(card.version_id)
    config = train_config(prepare(services), services.store, services.settings)
    assert config.init == services.store.path(card.version_id) / "weights.safetensors"
    assert config.device == "cpu"


def test_with_enough_labels_some_tell_when_to_stop(services: Services) -> None:
    run = prepare(services, count=33)  # 32 to train on
    folder = run_folder(services.settings.model_dir, run.run_id)
    train, stopping = (
        {record.image_sha256 for record in read_records(folder / name)}
        for name in (TRAIN_FILE, STOPPING_FILE)
    )
    assert (len(train), len(stopping), train & stopping) == (28, 4, set())
    assert not stopping & {record.image_sha256 for record in read_records(folder / HELD_OUT_FILE)}
    config = train_config(run, services.store, services.settings)
    assert config.validation is not None
    assert len(open_dataset(config.validation)) == 4
    assert config.patience == Recipe().patience > 0
    few = train_config(prepare(services, count=32), services.store, services.settings)
    assert (few.validation, few.patience) == (None, 0)


@pytest.mark.slow
def test_a_fine_tune_of_the_operators_weights(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts from them, is measured with them, and its version names them."""
    short = replace(RECIPES["ssp-sam-test"], batch_size=4, min_steps=4, max_steps=4)
    monkeypatch.setitem(RECIPES, "ssp-sam-test", short)
    weights = tmp_path / "own.safetensors"
    write_tensors(weights, golden_bundle(), {"preset": "ssp-sam-test"})
    settings = services.settings.model_copy(update={"weights": weights})
    run = prepare(services)
    assert train_config(run, services.store, settings).weights == (weights,)
    card = perform(run, services.store, settings)
    assert card.parents_sha256 == {"own.safetensors": hashlib.sha256(weights.read_bytes()).hexdigest()}
    with pytest.raises(ForeignVersionError, match=r"was trained on own\.safetensors"):
        services.store.load(card.version_id)
    trained = Services(settings).store.load(card.version_id)
    change = (trained["fusion.weight"] - golden_bundle()["fusion.weight"]).abs().max()
    assert 0 < change < 0.2, "it went on from the weights, a little"


def test_what_the_model_knew_before_is_named_by_the_preset_or_the_operator(services: Services) -> None:
    settings, run = services.settings, prepare(services)
    assert base_validation("ssp-sam-demo", settings) == RECIPES["ssp-sam-demo"].validation
    assert base_validation("ssp-sam-224", settings) is None
    named = settings.model_copy(
        update={"validation_data": "refcoco/val", "replay_data": "refcoco/train", "weights": Path("own")}
    )
    assert base_validation("ssp-sam-224", named) == "refcoco/val"
    assert train_config(run, services.store, named).replay == "refcoco/train"
    own = settings.model_copy(update={"weights": Path("own")})
    assert base_validation("ssp-sam-demo", own) is None, "what ships was not what these learned from"


def test_words_and_presence_are_learned_where_replay_tells_what_else_there_is(services: Services) -> None:
    run = replace(prepare(services), preset="ssp-sam-demo")
    settings = services.settings
    own = settings.model_copy(update={"weights": Path("own")})
    named = own.model_copy(update={"replay_data": "refcoco/train"})
    for told, learned in ((settings, True), (own, False), (named, True)):
        config = train_config(run, services.store, told)
        assert (config.word_learning_rate > 0, config.loss.presence > 0) == (learned, learned)


@pytest.mark.parametrize("variable", ["validation_data", "replay_data"])
@pytest.mark.parametrize(
    ("data", "problem"),
    [
        pytest.param("refcoco/val?root=/nowhere", "/nowhere", id="missing"),
        pytest.param("records:{folder}/empty.jsonl?images=/", "has no samples", id="empty"),
    ],
)
def test_a_data_set_that_is_missing_or_empty_is_said_before_the_training(
    services: Services, tmp_path: Path, variable: str, data: str, problem: str
) -> None:
    (tmp_path / "empty.jsonl").touch()
    settings = services.settings.model_copy(update={variable: data.format(folder=tmp_path)})
    run = prepare(services)
    with pytest.raises(RunError, match=rf"{variable.upper()}: .*{problem}"):
        perform(run, services.store, settings)
    assert not (run_folder(settings.model_dir, run.run_id) / "training").exists()


def test_recipes_are_for_presets_that_exist() -> None:
    assert set(RECIPES) <= set(PRESETS)


@pytest.mark.parametrize(
    "data",
    [name for recipe in RECIPES.values() for name in (recipe.replay, recipe.validation) if name],
)
def test_what_recipes_name_can_be_opened(data: str) -> None:
    assert len(open_dataset(data)) > 100


def publish_candidate(services: Services, run: Run, candidate: float) -> VersionCard:
    """What is left when a worker was killed between publishing and judging."""
    metrics = {
        "incumbent": {"gIoU": 0.5},
        "candidate": {"gIoU": candidate},
        "interval": [candidate - 0.55, candidate - 0.45],
        "held_out_samples": 9,
        "held_out_images": 6,
    }
    card = VersionCard(
        line=run.line,
        parent=run.base_version,
        metrics=metrics,
        data={"run": run.run_id, "project": PROJECT},
    )
    folder = run_folder(services.settings.model_dir, run.run_id)
    return services.store.publish({"w": torch.ones(1)}, card, {"run.json": folder / "run.json"})


@pytest.mark.parametrize(("candidate", "status"), [(0.6, "promoted"), (0.4, "rejected")])
def test_a_candidate_that_was_not_judged_is_judged_without_training_again(
    services: Services, candidate: float, status: str
) -> None:
    run = prepare(services)
    publish_candidate(services, run, candidate)
    result = jobs.finetune(PROJECT, run.run_id)
    assert isinstance(result, dict)
    assert (result["version"], result["status"]) == ("ssp-sam-test-0001", status)
    assert jobs.finetune(PROJECT, run.run_id) == result, "doing it twice changes nothing"
    assert len(services.store.list()) == 2
    assert not run_folder(services.settings.model_dir, run.run_id).exists()


def test_a_run_for_a_version_that_no_longer_serves_is_dropped(services: Services) -> None:
    run = prepare(services)
    card = services.store.publish({"w": torch.ones(1)}, VersionCard(), {})
    services.store.promote(card.version_id)
    result = jobs.finetune(PROJECT, run.run_id)
    assert isinstance(result, dict)
    assert result["status"] == "outdated"
    assert len(services.store.list()) == 2


def test_a_candidate_does_not_undo_what_a_person_did_while_it_was_trained(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = services.store
    first = store.publish({"w": torch.ones(1)}, VersionCard(line=LINE.name), {})
    store.promote(first.version_id)
    run = prepare(services)

    def perform_slowly(*_: object) -> VersionCard:
        store.rollback(line=LINE.name)
        return publish_candidate(services, run, 0.6)

    monkeypatch.setattr(jobs, "perform", perform_slowly)
    result = jobs.finetune(PROJECT, run.run_id)
    assert isinstance(result, dict)
    assert result["status"] == "rejected"
    assert result["reason"] == "ssp-sam-test-base serves project 8 since this was decided"
    assert store.current(LINE.name) == store.base_version


def test_a_promotion_between_a_verdict_and_its_effect_counts(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = services.store
    card = publish_candidate(services, prepare(services), 0.6)
    other = store.publish({"w": torch.ones(1)}, VersionCard(line=LINE.name), {})
    promote = store.promote

    def promote_late(version_id: str, *arguments: Any, **options: Any) -> VersionCard:
        monkeypatch.setattr(store, "promote", promote)
        promote(other.version_id)
        return promote(version_id, *arguments, **options)

    monkeypatch.setattr(store, "promote", promote_late)
    judged = judge_candidate(store, card, LINE)
    assert (judged.status, store.current(LINE.name)) == ("rejected", other.version_id)
    assert other.version_id in judged.reason


def test_a_version_tells_what_it_was_made_of(services: Services) -> None:
    run = prepare(services)
    card = publish_candidate(services, run, 0.6)
    assert find_version(services.store, run.run_id) == card
    assert find_version(services.store, "finetune-8-other") is None
    assert run_of(services.store, card) == run
    assert learned_samples(services.store, LINE) == set(run.samples)
    assert learned_samples(services.store, Line("project-99", (99,))) == set()


def test_what_was_learned_before_there_were_lines_is_not_learned_again(services: Services) -> None:
    """Release 0.2 named the project in the run and on the card, and no line."""
    run = prepare(services)
    old = {"run_id": run.run_id, "project": PROJECT, "preset": run.preset, "base_version": run.base_version}
    text = json.dumps({**old, "digest": run.digest, "samples": run.samples})
    for project in (PROJECT, 9):
        card = VersionCard(data={"run": run.run_id, "project": project})
        services.store.publish({"w": torch.ones(1)}, card, {"run.json": text})
    assert learned_samples(services.store, LINE) == set(run.samples)
    assert learned_samples(services.store, Line("shared", (PROJECT, 10))) == set(run.samples)
    assert learned_samples(services.store, Line("project-10", (10,))) == set()
    [card, _] = services.store.list()[1:]
    assert run_of(services.store, card) == replace(run, asked={})
    folder = run_folder(services.settings.model_dir, run.run_id)
    (folder / "run.json").write_text(text)
    assert Run.read(folder) == replace(run, asked={}), "a run that was queued before the upgrade"


def test_a_line_without_a_split_starts_with_the_one_of_all_projects(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "split.json").write_text('{"a": "train", "b": "held-out"}')
    assert load_split(tmp_path, "project-7") == {"a": "train", "b": "held-out"}
    save_split(tmp_path, "project-7", {"a": "train", "b": "held-out", "c": "held-out"})
    assert set(load_split(tmp_path, "project-7")) == {"a", "b", "c"}
    assert set(load_split(tmp_path, "project-9")) == {"a", "b"}


def test_what_one_of_several_lines_was_trained_on_is_not_held_out() -> None:
    one: dict[str, Side] = {"a": "train", "b": "held-out", "c": "held-out"}
    other: dict[str, Side] = {"a": "held-out", "b": "held-out", "d": "train"}
    assert merge_splits([one, other]) == {"a": "train", "b": "held-out", "c": "held-out", "d": "train"}


def test_runs_of_lines_with_similar_names_are_told_apart() -> None:
    lines = [
        Line(name, (1,)) for name in ("project-7", "project-77", "bats", "bats-2", "projects-7-9", "shared")
    ]
    ids = [run_id_for(line, "0123456789abcdef" * 4, "ssp-sam-test-base") for line in lines]
    assert len(set(ids)) == len(ids)
    for line in lines:
        assert [is_of_line(run_id, line) for run_id in ids] == [other is line for other in lines]


def test_a_run_may_start_from_another_version_than_the_serving_one(services: Services) -> None:
    version = services.store.publish({"w": torch.ones(1)}, VersionCard(line=LINE.name), {}).version_id
    services.store.promote(version)
    records = [record(number, services.settings.images_dir) for number in range(4)]
    sides: dict[str, Side] = {it.image_sha256: "held-out" if it.task == 0 else "train" for it in records}
    folder, store, base = services.settings.model_dir, services.store, services.store.base_version
    run = prepare_run(folder, store, LINE, records, sides)
    restarted = prepare_run(folder, store, LINE, records, sides, start_version=base)
    assert (run.start_version, run.restarts) == (version, False)
    assert (restarted.base_version, restarted.start_version, restarted.restarts) == (version, base, True)
    assert restarted.run_id == f"{run.run_id}-from-{base}"
    assert train_config(restarted, store, services.settings).init is None


@pytest.mark.parametrize(("samples", "views"), [(1, 8), (15, 8), (40, 4), (100, 1), (5000, 1)])
def test_few_samples_are_seen_from_several_sides(samples: int, views: int) -> None:
    assert Recipe(most_views=8).views(samples) == views
    assert Recipe().views(samples) == 1


def test_a_mask_decoder_that_does_not_learn_is_frozen() -> None:
    assert Recipe(decoder_learning_rate=0).settings()["decoder_frozen_steps"] > Recipe().max_steps
    assert Recipe().settings()["decoder_frozen_steps"] == 0


def test_a_version_that_backends_refuse_is_no_base(services: Services) -> None:
    """After new frozen weights were installed: the version on which they were trained cannot serve."""
    store = services.store
    store.__dict__["frozen_weights"] = {"old.safetensors": "1" * 64}
    card = VersionCard(parents_sha256={"old.safetensors": "1" * 64}, line=LINE.name)
    version = store.publish({"w": torch.ones(1)}, card, {}).version_id
    store.promote(version)
    assert base_of(store, LINE) == version
    store.__dict__["frozen_weights"] = {"new.safetensors": "2" * 64}
    assert base_of(store, LINE) == store.base_version
    records = [record(number, services.settings.images_dir) for number in range(4)]
    sides: dict[str, Side] = {r.image_sha256: ("train", "held-out")[n % 2] for n, r in enumerate(records)}  # type: ignore[misc]
    run = prepare_run(services.settings.model_dir, store, LINE, records, sides)
    assert (run.base_version, run.start_version) == (store.base_version, store.base_version)
