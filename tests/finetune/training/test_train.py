"""Training: it learns, resumes exactly, and refuses invalid configurations."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from finetune.cli import training
from finetune.data.sample import Sample
from finetune.data.stickers.dataset import StickerDataset
from finetune.training import recipe
from finetune.training.batches.examples import ExampleStream
from finetune.training.config import ConfigError, TrainConfig, make_config, read_config
from finetune.training.loop import CHECKPOINT_NAME, LOG_NAME, TrainingLoop, read_log
from finetune.training.losses import LossWeights
from finetune.training.recipe import demo_stages, further_stage, train_further
from finetune.training.stages.rec import RECStage
from finetune.training.stages.ssp import SSPStage
from finetune.training.train import WEIGHTS_NAME, train, write_bundle
from sspsam import CheckpointError, Predictor
from sspsam.checkpoints.bundles import WEIGHTS_FOLDER
from sspsam.checkpoints.load import read_tensors
from sspsam.cli import build_app

DATA = "stickers/train?count=4&nouns=first&families=noun"


def config_in(folder: Path) -> TrainConfig:
    return TrainConfig(
        preset="ssp-sam-test", output_dir=folder, data=DATA, steps=6, batch_size=4, window=16,
        target_size=64, learning_rate=3e-3, decoder_learning_rate=3e-3, warmup_steps=2,
        max_gradient_norm=1.0, checkpoint_every=3, device="cpu",
    )  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return config_in(tmp_path / "run")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Of a run that was never interrupted, whose folder the tests only read."""
    config = config_in(tmp_path_factory.mktemp("finished"))
    assert train(config).steps == config.steps
    return config


@pytest.mark.slow
def test_overfits_a_few_phrases(config: TrainConfig) -> None:
    config = dataclasses.replace(config, steps=60, batch_size=8, data="stickers/train?count=1&families=noun")
    first: dict[str, float] = {}
    result = train(config, lambda step, means: first.update(means) if step == 1 else None)
    assert result.metrics["dice"] < 0.9 * first["dice"]
    assert result.metrics["total"] < 0.8 * first["total"]


@pytest.mark.slow
def test_a_stopped_run_ends_as_an_unbroken_one(finished: TrainConfig, config: TrainConfig) -> None:
    class Killed(Exception):
        pass

    def stop_at_five(step: int, means: dict[str, float]) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        train(config, stop_at_five)
    resumed = train(config)

    expected, actual = read_tensors(finished.output_dir / WEIGHTS_NAME), read_tensors(resumed.weights)
    assert all(torch.equal(expected[key], actual[key]) for key in expected)
    assert resumed.steps == config.steps


@pytest.mark.slow
def test_a_run_that_two_workers_do_at_once_ends_as_with_one(
    finished: TrainConfig, config: TrainConfig
) -> None:
    """As when a worker was taken for dead: another does all of the run in the same folder meanwhile."""
    alone = read_tensors(finished.output_dir / WEIGHTS_NAME)
    others: list[Path] = []

    def let_another_work(step: int, means: dict[str, float]) -> None:
        if step == 4:
            others.append(train(config).weights)

    own = read_tensors(train(config, let_another_work).weights)
    assert len(others) == 1
    assert all(torch.equal(own[key], alone[key]) for key in alone)
    assert train(config).steps == config.steps, "its checkpoint can be read"
    assert {path.name for path in config.output_dir.iterdir()} >= {CHECKPOINT_NAME, LOG_NAME, WEIGHTS_NAME}
    assert not [path for path in config.output_dir.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_a_finished_run_is_not_repeated(finished: TrainConfig) -> None:
    steps: list[int] = []
    assert train(finished, lambda step, _: steps.append(step)).steps == finished.steps
    assert steps == []


@pytest.mark.slow
def test_only_trainable_tensors_change(config: TrainConfig) -> None:
    before = Predictor.from_preset("ssp-sam-test", "cpu")
    data = StickerDataset("train", count=2, families=["noun"])
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    TrainingLoop(SSPStage(predictor, config, data), config, predictor.device).run()
    trainable = predictor.trainable_state()
    for name, tensor in predictor.model.state_dict().items():
        assert (name in trainable) or torch.equal(tensor, before.model.state_dict()[name]), name
    assert any(not torch.equal(trainable[k], v) for k, v in before.trainable_state().items())


def test_replay_has_its_share_of_a_batch(config: TrainConfig) -> None:
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    data = StickerDataset("train", count=2, families=["noun"])
    replay = StickerDataset("val", count=2, families=["noun"])
    config = dataclasses.replace(config, replay="stickers/val", replay_fraction=0.25)
    batch = SSPStage(predictor, config, data, replay).batch(0)
    assert [name.split("/")[1] for name in batch.sample_ids] == ["train"] * 3 + ["val"]


@pytest.mark.parametrize(("fraction", "expected"), [(0.05, 1), (0.5, 2), (0.95, 3)])
def test_replay_does_not_change_the_size_of_a_batch(
    config: TrainConfig, fraction: float, expected: int
) -> None:
    data, replay = (StickerDataset(split, count=1, families=["noun"]) for split in ("train", "val"))
    config = dataclasses.replace(config, replay="stickers/val", replay_fraction=fraction)
    batch = SSPStage(Predictor.from_preset("ssp-sam-test", "cpu"), config, data, replay).batch(0)
    assert len(batch.sample_ids) == config.batch_size
    assert sum("/val/" in sample_id for sample_id in batch.sample_ids) == expected


def test_an_epoch_visits_every_sample_once(config: TrainConfig) -> None:
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    data = StickerDataset("train", count=4, families=["noun"], phrases_per_scene=2)
    stream = ExampleStream(data, predictor, batch_size=2, window=4, target_size=32, seed=0)
    seen = [sample_id for step in range(4) for sample_id in stream.batch(step).sample_ids]
    assert sorted(seen) == sorted(data[i].sample_id for i in range(len(data)))


def test_samples_after_the_last_full_window_are_visited() -> None:
    """Windows of equal length, in an order of each epoch's own, and the same after a resume."""
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    data = StickerDataset("train", count=5, families=["noun"], phrases_per_scene=2)

    def opened() -> ExampleStream:
        return ExampleStream(data, predictor, batch_size=2, window=4, target_size=32, seed=1)

    names = [data[i].sample_id for i in range(len(data))]
    windows = [set(names[:4]), set(names[4:8]), set(names[6:])]
    stream = opened()
    batches = [stream.batch(step).sample_ids for step in range(12)]
    visits = [{*batches[step], *batches[step + 1]} for step in range(0, 12, 2)]
    orders = [[windows.index(visit) for visit in epoch] for epoch in (visits[:3], visits[3:])]
    assert [sorted(order) for order in orders] == [[0, 1, 2]] * 2
    assert orders[0] != orders[1]
    assert opened().batch(7).sample_ids == batches[7]


def test_the_batches_of_one_window_are_those_of_its_samples_order() -> None:
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    data = StickerDataset("train", count=2, families=["noun"], phrases_per_scene=2)
    stream = ExampleStream(data, predictor, batch_size=2, window=6000, target_size=32, seed=3)
    for step in range(4):
        order = np.random.default_rng((3, step // 2)).permutation(4)[2 * (step % 2) :][:2]
        assert stream.batch(step).sample_ids == tuple(data[int(i)].sample_id for i in order)


def test_targets_lie_where_the_mask_is(config: TrainConfig) -> None:
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    sample: Sample = StickerDataset("train", count=1, families=["noun"])[0]
    batch = ExampleStream([sample], predictor, 1, 1, target_size=256, seed=0).batch(0)
    height, width = sample.mask.shape
    assert batch.masks.mean().item() == pytest.approx(sample.mask.sum() / max(height, width) ** 2, rel=0.05)
    assert batch.has_target.tolist() == [True]
    assert batch.boxes.min() > 0
    assert batch.boxes.max() < 1


@pytest.mark.slow
def test_pretraining_stages_make_a_bundle(config: TrainConfig, tmp_path: Path) -> None:
    stages = [
        dataclasses.replace(config, stage=stage, output_dir=tmp_path / stage, steps=2, batch_size=6)
        for stage in ("clip", "sam")
    ]
    files = [train(stage).weights for stage in stages]
    ssp = train(dataclasses.replace(config, weights=tuple(files), steps=1, output_dir=tmp_path / "ssp"))
    bundle = tmp_path / "bundle.safetensors"
    write_bundle("ssp-sam-test", [*files, ssp.weights], bundle)
    loaded = Predictor.from_preset("ssp-sam-test", "cpu", weights=bundle)
    for key, tensor in read_tensors(ssp.weights).items():
        torch.testing.assert_close(loaded.trainable_state()[key], tensor, atol=1e-2, rtol=1e-2)
    with pytest.raises(CheckpointError, match="no file contains: box_head"):
        write_bundle("ssp-sam-test", files, bundle)


@pytest.mark.slow
def test_a_fresh_prompt_encoder_attends_to_the_target(config: TrainConfig) -> None:
    config = dataclasses.replace(config, from_scratch=True, batch_size=16)
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    stage = SSPStage(predictor, config, StickerDataset("train", count=2, families=["noun"]))
    generator = predictor.model.prompt_generator
    first = generator.layers[0].self_attn
    batch = stage.batch(0)
    with torch.no_grad():
        patches = predictor.model.fuse(
            batch.patch_features, predictor.model.adapt_phrase(batch.text, batch.tokens)
        )
        position = generator.position.weight[-patches.shape[1] :]
        logits = (patches + position) @ first.in_proj_weight[first.embed_dim]
    covered = torch.nn.functional.adaptive_avg_pool2d(batch.masks, 4).flatten(1)
    assert logits[covered > 0].mean() > logits[covered == 0].mean()


def test_boxes_and_patches_are_learned_without_masks(config: TrainConfig) -> None:
    config = dataclasses.replace(config, stage="rec", loss=LossWeights(patch=1.0))
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    stage = RECStage(predictor, config, StickerDataset("train", count=2, families=["noun"]))
    loop = TrainingLoop(stage, config, predictor.device)
    decoder = {k: v.clone() for k, v in predictor.model.sam.state_dict().items()}
    assert set(loop.train_step()) == {"l1", "generalized_box_iou", "patch", "total"}
    assert all(torch.equal(decoder[k], v) for k, v in predictor.model.sam.state_dict().items())


@pytest.mark.slow
def test_the_presence_head_learns_with_the_others(config: TrainConfig) -> None:
    """On one batch: the shares of phrases without a target differ between batches, and the loss with them."""
    torch.manual_seed(0)
    config = dataclasses.replace(
        config, loss=LossWeights(presence=1.0), learning_rate=1e-2, batch_size=16, steps=31
    )
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    model = predictor.model
    model.presence_head = torch.nn.Linear(model.fusion.out_features, 1)
    stage = SSPStage(predictor, config, StickerDataset("train", count=2, families=["noun", "none"]))
    loop = TrainingLoop(stage, config, predictor.device)
    before = loop.train_step()["presence"]
    for _ in range(30):
        after = loop.train_step()["presence"]
    assert after < before / 2
    assert {"presence_head.weight", "presence_head.bias"} <= predictor.trainable_state().keys()


def test_patches_know_how_much_of_them_the_target_covers() -> None:
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    sample: Sample = StickerDataset("train", count=1, families=["noun"])[0]
    batch = ExampleStream([sample], predictor, 1, 1, target_size=256, seed=0).batch(0)
    grid = predictor.model.preset.clip.grid_size
    assert batch.patch_coverage.shape == (1, grid**2)
    frame = predictor.embed(sample.image).clip_frame
    share = sample.mask.mean() * np.prod(frame.resized_hw) / frame.side**2
    assert batch.patch_coverage.mean().item() == pytest.approx(share, rel=0.1)


@pytest.mark.slow
def test_the_log_can_be_read_back(finished: TrainConfig) -> None:
    last = read_log(finished.output_dir / LOG_NAME)[-1]
    assert last["step"] == finished.steps
    assert last["total"] > 0


@pytest.mark.slow
def test_a_damaged_checkpoint_is_not_ignored(finished: TrainConfig, config: TrainConfig) -> None:
    shutil.copytree(finished.output_dir, config.output_dir)
    checkpoint = config.output_dir / CHECKPOINT_NAME
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="checkpoint"):
        train(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "ssp-sam-test", "output_dir": "x", "stepz": "3"}, "unknown setting stepz"),
        ({"preset": "nothing", "output_dir": "x"}, "unknown preset 'nothing'"),
        (
            {"preset": "ssp-sam-test", "output_dir": "x", "replay": "stickers/val", "batch_size": 1},
            "batch_size must be at least 2 with replay",
        ),
        ({"preset": "ssp-sam-test", "output_dir": "x", "steps": "many"}, "many"),
        ({"preset": "ssp-sam-test", "output_dir": "x", "steps": "0"}, "at least 1"),
        ({"preset": "ssp-sam-test"}, "output_dir"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(settings)


def test_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('preset = "ssp-sam-test"\noutput_dir = "runs/a"\nsteps = 5\n[loss]\ndice = 2.0\n')
    config = read_config(file, {"steps": "7"})
    assert (config.steps, config.loss.dice, config.output_dir) == (7, 2.0, Path("runs/a"))


@pytest.mark.slow
def test_the_command_says_what_is_left(config: TrainConfig) -> None:
    settings = {
        "preset": config.preset, "output_dir": config.output_dir, "data": config.data, "steps": 20,
        "batch_size": 4, "window": 16, "target_size": 32, "device": "cpu",
    }  # fmt: skip
    done = CliRunner().invoke(build_app(), ["train", *(f"{key}={value}" for key, value in settings.items())])
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith("ssp     20/20  0:00:00 left  dice ")
    assert done.stdout.splitlines()[-1] == f"Written to {config.output_dir / WEIGHTS_NAME}"


def test_every_stage_of_the_recipe_says_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = demo_stages(tmp_path)
    for stage in stages:
        show = training.show_progress(stage)
        for step in range(1, training.PROGRESS_EVERY + 1):
            show(step, {"total": 0.5})
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("  ")[0] for line in lines] == [stage.stage for stage in stages]
    assert all(f"20/{stage.steps}  " in line for line, stage in zip(lines, stages, strict=True))
    assert all(" left  total 0.5000" in line for line in lines)


@pytest.mark.slow
def test_the_weights_that_ship_are_trained_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = dataclasses.replace(further_stage(tmp_path), steps=2, batch_size=4, window=16, device="cpu")
    monkeypatch.setattr(recipe, "further_stage", lambda folder: short)
    steps: list[int] = []
    bundle = train_further(tmp_path, lambda config: lambda step, means: steps.append(step))

    assert steps == [1, 2]
    before, after = (read_tensors(path) for path in (WEIGHTS_FOLDER / recipe.BUNDLE_NAME, bundle))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("clip.towers.transformer.") for name in changed), "the text tower learns"
    assert any(name.startswith("prompt_generator.") for name in changed)
    assert not any(name.startswith(("image_encoder.", "clip.towers.visual.")) for name in changed)
    Predictor.from_preset(recipe.PRESET, "cpu", weights=bundle)


def test_training_further_needs_a_folder() -> None:
    done = CliRunner().invoke(build_app(), ["train", "--further"])
    assert done.exit_code == 2
    assert "--further needs --recipe FOLDER" in done.output
