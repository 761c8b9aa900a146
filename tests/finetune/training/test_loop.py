"""The training loop: gradient accumulation, processes, resuming, curves, and non-finite numbers."""

from __future__ import annotations

import json
import logging
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.data.dataset import open_dataset
from finetune.training.config import ConfigError, TrainConfig
from finetune.training.curves import (
    MLFLOW_RUN_FILE,
    MLFLOW_URI_VARIABLE,
    TENSORBOARD_FOLDER,
    MLflowCurves,
    log_outcome,
)
from finetune.training.loop import (
    LOG_NAME,
    NonFiniteGradientError,
    TrainingLoop,
    append_json_line,
    read_log,
)
from finetune.training.losses import Criterion, NonFiniteLossError
from finetune.training.ranks import Ranks
from finetune.training.stages.rec import RECStage
from finetune.training.stages.ssp import SSPStage
from finetune.training.train import train
from sspsam import CheckpointError, Predictor
from sspsam.checkpoints.load import read_tensors
from tests.finetune.launching import launch

DATA = "stickers/train?count=4&nouns=first&families=noun,none&phrases=4"
WINDOWS: dict[str, object] = {}
STREAM: dict[str, object] = {"stream": True, "random_placement": True, "flip_probability": 0.5}
BOXES: dict[str, object] = {"stage": "rec", "stream": True, "random_placement": True}


def config_for(folder: Path, **settings: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "preset": "ssp-sam-test", "output_dir": folder, "data": DATA, "steps": 4, "batch_size": 8,
        "window": 16,
        "target_size": 32, "learning_rate": 1e-3, "decoder_learning_rate": 1e-3, "warmup_steps": 2,
        "max_gradient_norm": 1.0, "checkpoint_every": 2, "device": "cpu",
    }  # fmt: skip
    return TrainConfig(**(values | settings))


def loop_for(config: TrainConfig) -> TrainingLoop:
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    make = RECStage if config.stage == "rec" else SSPStage
    return TrainingLoop(make(predictor, config, open_dataset(config.data)), config, predictor.device)


def losses(loop: TrainingLoop, steps: int) -> list[dict[str, float]]:
    return [loop.train_step() for _ in range(steps)]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [WINDOWS, STREAM, BOXES], ids=["windows", "stream", "boxes"])
def test_parts_add_up_to_the_whole_batch(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Also where the parts have different numbers of samples, and of targets."""
    whole = losses(loop_for(config_for(tmp_path, **settings)), 2)
    parts = losses(loop_for(config_for(tmp_path, accumulate=3, **settings)), 2)
    for one, other in zip(whole, parts, strict=True):
        assert other == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("settings", [WINDOWS, STREAM], ids=["windows", "stream"])
def test_more_parts_than_samples_are_one_part_for_each(tmp_path: Path, settings: dict[str, Any]) -> None:
    whole = losses(loop_for(config_for(tmp_path, batch_size=2, **settings)), 1)
    parts = losses(loop_for(config_for(tmp_path, batch_size=2, accumulate=5, **settings)), 1)
    assert parts[0] == pytest.approx(whole[0], rel=1e-4)


def test_more_processes_than_samples_are_refused(tmp_path: Path) -> None:
    config, predictor = config_for(tmp_path, batch_size=2), Predictor.from_preset("ssp-sam-test", "cpu")
    with pytest.raises(ConfigError, match="3 processes cannot share batches of 2 samples"):
        SSPStage(predictor, config, open_dataset(config.data), processes=Ranks(0, 3))


@pytest.mark.slow
def test_two_processes_learn_as_one_with_the_doubled_batch(tmp_path: Path) -> None:
    """Through windows, streamed, and boxes alone; each process takes its share in two parts."""
    kinds = {"windows": WINDOWS, "stream": STREAM, "boxes": BOXES}
    program = tmp_path / "learn.py"
    program.write_text(
        "import json, sys\n"
        "from pathlib import Path\n"
        "from finetune.training.train import train\n"
        "from tests.finetune.training.test_loop import config_for\n"
        "seen = {}\n"
        "for name, settings in json.loads(sys.argv[2]).items():\n"
        "    config = config_for(Path(sys.argv[1]) / name, accumulate=2, **settings)\n"
        "    train(config, lambda step, means: seen.setdefault(name, []).append(means))\n"
        "print(json.dumps(seen))\n"
    )
    printed = [json.loads(out) for out in launch(2, program, str(tmp_path / "two"), json.dumps(kinds))]
    assert printed[0] == printed[1], "every process knows the loss of all"
    for name, settings in kinds.items():
        alone: list[dict[str, float]] = []
        train(config_for(tmp_path / "one" / name, **settings), lambda step, means: alone.append(means))  # noqa: B023
        assert len(alone) == 4
        for together, one in zip(printed[0][name], alone, strict=True):
            assert together == pytest.approx(one, rel=1e-4), name
        assert len(read_log(tmp_path / "two" / name / LOG_NAME)) == 1, "one process writes"


@pytest.mark.parametrize(("is_faster", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_precision_may_be_chosen_by_what_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_faster: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("finetune.training.loop.is_bfloat16_faster", lambda device: is_faster)
    loop = loop_for(config_for(tmp_path, steps=1, precision="auto"))
    loss, computed = loop.stage.loss, set()

    def noted(*step: int) -> dict[str, torch.Tensor]:
        computed.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return loss(*step)

    monkeypatch.setattr(loop.stage, "loss", noted)
    loop.run()
    assert computed == {dtype}


def test_steps_in_bfloat16_on_a_cpu_do_without_the_attention_whose_gradient_is_slow(tmp_path: Path) -> None:
    loop = loop_for(config_for(tmp_path, steps=1, precision="bfloat16"))
    with torch.profiler.profile() as profile:
        loop.run()
    ran = {event.key for event in profile.key_averages()}
    assert "aten::_scaled_dot_product_attention_math" in ran
    assert not any("flash" in name for name in ran)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("settings", [WINDOWS, STREAM, BOXES], ids=["windows", "stream", "boxes"])
def test_the_losses_after_resuming_are_those_of_an_unbroken_run(
    tmp_path: Path, settings: dict[str, Any], precision: str
) -> None:
    config = config_for(tmp_path, steps=6, batch_size=2, precision=precision, **settings)
    unbroken = losses(loop_for(config), 4)
    first = loop_for(config)
    losses(first, 2)
    first.save()
    second = loop_for(config)
    torch.manual_seed(12345)  # whatever was drawn in between changes nothing
    assert second.resume()
    assert second.scaler.get_scale() == first.scaler.get_scale()
    assert losses(second, 2) == unbroken[2:]


@pytest.mark.slow
def test_float16_leaves_out_steps_that_overflow_and_learns_in_the_others(tmp_path: Path) -> None:
    """The first scale is too large for this model: it is halved until the gradient fits."""
    whole, half = loop_for(config_for(tmp_path)), loop_for(config_for(tmp_path, precision="float16"))
    before = {k: v.clone() for k, v in half.stage.module.state_dict().items()}
    first_scale, rates = half.scaler.get_scale(), half.schedule.get_last_lr()
    for _ in range(16):
        scale = half.scaler.get_scale()
        half.train_step()
        if half.scaler.get_scale() == scale:
            break
        assert half.scaler.get_scale() == scale / 2
        assert half.schedule.get_last_lr() == rates
        assert all(torch.equal(v, before[k]) for k, v in half.stage.module.state_dict().items())
    assert scale < first_scale, "at least one step overflowed"
    assert half.schedule.get_last_lr() != rates
    assert any(not torch.equal(v, before[k]) for k, v in half.stage.module.state_dict().items())

    fitting = loop_for(config_for(tmp_path, precision="float16"))
    fitting.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for one, other in zip(losses(whole, 4), losses(fitting, 4), strict=True):
        assert other == pytest.approx(one, rel=0.05)


def test_a_changed_setting_is_said_when_resuming(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loop = loop_for(config_for(tmp_path))
    loop.train_step()
    loop.save()
    with caplog.at_level(logging.WARNING):
        loop_for(config_for(tmp_path, batch_size=4, workers=1)).resume()
    assert caplog.messages == ["batch_size changed from 8 to 4"]


@pytest.mark.slow
def test_boxes_are_learned_without_sam(tmp_path: Path) -> None:
    loop = loop_for(config_for(tmp_path, steps=40, learning_rate=3e-3, **BOXES))
    before = {k: v.clone() for k, v in loop.stage.module.state_dict().items() if ".sam." in k}
    seen = losses(loop, 40)
    assert set(seen[0]) == {"l1", "generalized_box_iou", "total"}
    assert sum(step["l1"] for step in seen[-5:]) < 0.7 * sum(step["l1"] for step in seen[:5])
    after = loop.stage.module.state_dict()
    assert before
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.slow
def test_masks_go_on_from_boxes(tmp_path: Path) -> None:
    boxes = train(config_for(tmp_path / "rec", **BOXES))
    masks = train(config_for(tmp_path / "ssp", init=boxes.weights, steps=1, learning_rate=1e-6, **STREAM))
    start, end = read_tensors(boxes.weights), read_tensors(masks.weights)
    torch.testing.assert_close(
        end["box_head.layers.0.weight"], start["box_head.layers.0.weight"], atol=1e-4, rtol=0
    )
    assert {"dice", "focal", "l1", "generalized_box_iou", "total"} == set(masks.metrics)


def test_the_decoder_waits_until_it_may_learn(tmp_path: Path) -> None:
    loop = loop_for(config_for(tmp_path, decoder_frozen_steps=2))
    decoder = {
        key: value.clone() for key, value in loop.stage.module.state_dict().items() if "mask_decoder" in key
    }

    def changed() -> bool:
        state = loop.stage.module.state_dict()
        return any(not torch.equal(state[key], value) for key, value in decoder.items())

    losses(loop, 2)
    assert not changed()
    losses(loop, 1)
    assert changed()


def test_rates_rise_from_the_final_one_and_return_to_it(tmp_path: Path) -> None:
    config = config_for(
        tmp_path, steps=10, warmup_steps=4, learning_rate=1e-2, decoder_learning_rate=1e-3,
        final_learning_rate=1e-4,
    )  # fmt: skip
    loop = loop_for(config)
    rates = []
    for _ in range(10):
        rates.append([group["lr"] for group in loop.optimizer.param_groups])
        loop.optimizer.step()
        loop.schedule.step()
    assert rates[3] == pytest.approx([1e-2, 1e-3])
    assert all(before[0] < after[0] for before, after in pairwise(rates[:4]))
    assert [group["lr"] for group in loop.optimizer.param_groups] == pytest.approx([1e-4, 1e-4])


def test_a_loss_that_breaks_names_its_samples(tmp_path: Path) -> None:
    loop = loop_for(config_for(tmp_path))
    stage = loop.stage
    assert isinstance(stage, SSPStage)
    with torch.no_grad():
        stage.model.box_head.layers[-1].bias.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="on samples: stickers/"):
        loop.train_step()


class SteepCriterion(Criterion):
    """A finite loss whose gradient is not: the slope of a square root at zero."""

    def forward(self, *arguments: Any, **options: Any) -> dict[str, torch.Tensor]:
        terms: dict[str, torch.Tensor] = super().forward(*arguments, **options)
        return terms | {"total": terms["total"] + (terms["total"] - terms["total"].detach()).sqrt()}


def test_a_gradient_that_breaks_names_its_samples(tmp_path: Path) -> None:
    loop = loop_for(config_for(tmp_path))
    assert isinstance(loop.stage, SSPStage)
    loop.stage.criterion = SteepCriterion()
    before = {k: v.clone() for k, v in loop.stage.module.state_dict().items()}
    with pytest.raises(NonFiniteGradientError) as caught:
        loop.train_step()
    assert len(caught.value.sample_ids) == 8
    assert "gradient" in str(caught.value)
    after = loop.stage.module.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items()), "the step is not taken"


def test_float16_does_not_skip_for_ever(tmp_path: Path) -> None:
    """A gradient that is not finite even unscaled is broken, not too large."""
    loop = loop_for(config_for(tmp_path, precision="float16", batch_size=2))
    assert isinstance(loop.stage, SSPStage)
    loop.stage.criterion = SteepCriterion()
    loop.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = {k: v.clone() for k, v in loop.stage.module.state_dict().items()}
    losses(loop, 2)
    with pytest.raises(NonFiniteGradientError, match="on samples: stickers/"):
        loop.train_step()
    after = loop.stage.module.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


@pytest.mark.slow
def test_curves_can_be_seen_in_tensorboard(tmp_path: Path) -> None:
    result = train(config_for(tmp_path, steps=22))
    events = EventAccumulator(str(tmp_path / TENSORBOARD_FOLDER))
    events.Reload()
    assert {"total", "dice", "focal", "l1", "generalized_box_iou", "lr"} <= set(events.Tags()["scalars"])
    points = events.Scalars("total")
    assert [point.step for point in points] == [20, 22]
    assert points[-1].value == pytest.approx(result.metrics["total"], abs=1e-4)


@pytest.mark.slow
def test_mlflow_has_parameters_curves_and_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run, also when the training is stopped and goes on."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv(MLFLOW_URI_VARIABLE, (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "referring")
    from mlflow import MlflowClient

    class Stopped(Exception):
        pass

    def stop_at_three(step: int, means: dict[str, float]) -> None:
        if step == 3:
            raise Stopped

    config = config_for(tmp_path / "refcoco")
    with pytest.raises(Stopped):
        train(config, stop_at_three)
    client = MlflowClient()
    run_id = (tmp_path / "refcoco" / MLFLOW_RUN_FILE).read_text()
    assert client.get_run(run_id).info.status == "FAILED"

    seen: list[str] = []
    result = train(config, lambda step, means: seen.append(client.get_run(run_id).info.status))
    assert set(seen) == {"RUNNING"}
    run = client.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "refcoco")
    assert client.get_experiment(run.info.experiment_id).name == "referring"
    assert [r.info.run_id for r in client.search_runs([run.info.experiment_id])] == [run_id]
    assert run.data.params["batch_size"] == "8"
    assert run.data.params.keys() == config.to_dict().keys()
    assert run.data.metrics == pytest.approx({**result.metrics, "lr": config.final_learning_rate}, abs=1e-4)
    (point,) = client.get_metric_history(run_id, "total")
    assert point.step == 4
    figures = {
        "candidate": {"gIoU": 0.5, "Pr@0.5": 1},
        "interval": (0.1, 0.2),
        "metric": "gIoU",
        "N-acc": None,
    }
    log_outcome(tmp_path / "refcoco", "m-0001", "better", "<html>", figures)
    run = client.get_run(run_id)
    assert run.data.metrics["candidate/gIoU"] == 0.5
    assert run.data.metrics["candidate/Pr-0.5"] == 1
    assert (run.data.tags["version"], run.data.tags["reason"]) == ("m-0001", "better")
    assert [item.path for item in client.list_artifacts(run_id)] == ["report.html"]


@pytest.mark.slow
def test_a_training_without_tensorboard_has_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    result = train(config_for(tmp_path, steps=1))
    assert not (tmp_path / TENSORBOARD_FOLDER).exists()
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["total"] == pytest.approx(result.metrics["total"], abs=1e-4)


def test_a_training_outside_of_mlflow_has_nothing_to_tell_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.delenv(MLFLOW_URI_VARIABLE, raising=False)
    log_outcome(tmp_path, "m-0001", "better", "<html>", {})


def test_mlflow_that_is_not_installed_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setenv(MLFLOW_URI_VARIABLE, "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"pip install 'ssp-sam-assist\[mlflow\]'"):
        train(config_for(tmp_path))


class LostServer:
    """MLflow's client for a server that is gone once the run is made."""

    written = 0

    def get_experiment_by_name(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(experiment_id="0")

    def create_run(self, experiment_id: str, run_name: str) -> SimpleNamespace:
        return SimpleNamespace(info=SimpleNamespace(run_id="7"))

    def log_param(self, *param: object) -> None:
        pass

    def log_metric(self, *metric: object, step: int) -> None:
        LostServer.written += 1
        raise RuntimeError("no connection")

    def set_terminated(self, *end: object) -> None:
        raise RuntimeError("no connection")


def test_a_server_of_curves_that_fails_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = SimpleNamespace(MlflowClient=LostServer, MlflowException=RuntimeError)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    curves = MLflowCurves(config_for(tmp_path))
    for step in (20, 40):
        curves.write(step, {"total": 1.0, "dice": 0.5})
    curves.close(failed=False)
    assert LostServer.written == 1, "further points do not wait for it"
    assert [message.rpartition(": ")[2] for message in caplog.messages] == ["no connection"] * 2


def test_frozen_parts_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"no file of `weights` has tensors of: clip, sam, image_encoder"
    ):
        train(config_for(tmp_path, preset="ssp-sam-224"))


@pytest.mark.slow
def test_the_log_says_what_is_left(tmp_path: Path) -> None:
    train(config_for(tmp_path, steps=40))
    first, last = read_log(tmp_path / LOG_NAME)
    assert first["left_s"] == first["elapsed_s"] > 0  # half done
    assert last["left_s"] == 0


@pytest.mark.parametrize("torn", [b"", b'{"step": 20, "tot', b'{"step": 20, "tot\n', b"\x00\x00\xff", b"20"])
def test_a_torn_line_of_the_log_costs_only_itself(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / LOG_NAME
    append_json_line(path, {"step": 10})
    with path.open("ab") as file:
        file.write(torn)
    append_json_line(path, {"step": 30})
    append_json_line(path, {"step": 40})
    assert read_log(path) == [{"step": 10}, {"step": 30}, {"step": 40}]


class NormStage:
    """One batch normalisation that learns, and sees other numbers at every step."""

    def __init__(self) -> None:
        self.module = torch.nn.BatchNorm1d(2)
        self.sample_ids = ()

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.module.parameters())}]

    def loss(self, step: int, part: int = 0) -> dict[str, torch.Tensor]:
        batch = torch.randn(8, 2, generator=torch.Generator().manual_seed(step)) + step
        return {"total": (self.module(batch) - 1).square().mean()}


def test_running_statistics_survive_a_stop(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    unbroken, device = NormStage(), torch.device("cpu")
    TrainingLoop(unbroken, config, device).run()
    resumed = NormStage()
    TrainingLoop(resumed, config, device).run()  # at its end already: everything comes from the checkpoint
    for name, value in unbroken.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[name], value), name
    assert unbroken.module.running_mean.min() > 0.1
