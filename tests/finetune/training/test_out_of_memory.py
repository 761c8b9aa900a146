"""A batch that exceeds memory is processed in smaller parts with the same gradients."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.data.dataset import open_dataset
from finetune.training.loop import TrainingLoop
from finetune.training.stages.pretrain_sam import SAMStage
from finetune.training.stages.ssp import SSPStage
from sspsam import Predictor
from sspsam.modeling.prompts import Prompts
from tests.finetune.training.test_loop import STREAM, WINDOWS, config_for, loop_for, losses

SAMPLES = 4


def gpu_error() -> RuntimeError:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def cpu_error() -> RuntimeError:
    """As the CPU's allocator words it: asked for more than any machine has."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    return caught.value


class SmallMemory(SSPStage):
    """A stage that has room for this number of samples at once; without gradients, for all."""

    room = SAMPLES
    error = staticmethod(gpu_error)

    def patch_logits(self, prompts: Prompts) -> Tensor | None:
        """Comes late in a pass: by then random numbers have been drawn."""
        if len(prompts.prompt_tokens) > self.room and torch.is_grad_enabled():
            raise self.error()
        return super().patch_logits(prompts)


def small_loop(folder: Path, room: int, error: Any = gpu_error, **settings: Any) -> TrainingLoop:
    config = config_for(folder, batch_size=SAMPLES, **settings)
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    stage = SmallMemory(predictor, config, open_dataset(config.data))
    stage.room, stage.error = room, error
    return TrainingLoop(stage, config, predictor.device)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "error"), [(WINDOWS, cpu_error), (STREAM, gpu_error)], ids=["windows", "stream"]
)
def test_losses_and_gradients_are_those_of_the_whole_batch(
    tmp_path: Path, settings: dict[str, Any], error: Any, caplog: pytest.LogCaptureFixture
) -> None:
    whole = loop_for(config_for(tmp_path, batch_size=SAMPLES, **settings))
    small = small_loop(tmp_path, 1, error, **settings)
    with caplog.at_level(logging.WARNING):
        terms = small.train_step()
    assert terms == pytest.approx(whole.train_step(), rel=1e-4)
    assert small.parts == 4
    assert caplog.messages == [
        f"step 0: out of memory, retrying the batch in {parts} parts" for parts in (2, 4)
    ]
    pairs = zip(whole.stage.module.parameters(), small.stage.module.parameters(), strict=True)
    for mine, theirs in pairs:
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-5)
    assert small.train_step() == pytest.approx(whole.train_step(), rel=1e-3)


@pytest.mark.slow
def test_memory_that_runs_out_later_changes_no_step_before_or_after(tmp_path: Path) -> None:
    expected = losses(loop_for(config_for(tmp_path, batch_size=SAMPLES)), 4)
    loop = small_loop(tmp_path, SAMPLES)
    assert isinstance(loop.stage, SmallMemory)
    first = losses(loop, 2)
    loop.stage.room = 3
    for one, other in zip(expected, first + losses(loop, 2), strict=True):
        assert other == pytest.approx(one, rel=1e-4)


@pytest.mark.slow
def test_parts_that_were_given_are_halved(tmp_path: Path) -> None:
    loop = small_loop(tmp_path, 1, accumulate=3)
    loop.train_step()
    assert loop.parts == SAMPLES


@pytest.mark.slow
def test_what_had_to_be_halved_stays_so_after_resuming(tmp_path: Path) -> None:
    first = small_loop(tmp_path, 1)
    losses(first, 1)
    first.save()
    expected = losses(first, 2)
    second = small_loop(tmp_path, 1)
    assert second.resume()
    assert second.parts == 4
    assert losses(second, 2) == expected


def test_a_single_sample_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    loop = small_loop(tmp_path, 0)
    with pytest.raises(torch.OutOfMemoryError):
        loop.train_step()
    assert loop.parts == SAMPLES
    assert loop.step == 0


def test_other_errors_are_not_taken_for_this_one(tmp_path: Path) -> None:
    loop = small_loop(tmp_path, 2, lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        loop.train_step()
    assert loop.parts == 1


class GreedySAM(SAMStage):
    def loss(self, step: int) -> dict[str, Tensor]:
        raise gpu_error()


def test_a_stage_without_parts_says_that_memory_ran_out(tmp_path: Path) -> None:
    config = config_for(tmp_path, stage="sam")
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    encoder = predictor.model.preset.image_encoder
    data = open_dataset(config.data)
    stage = GreedySAM(predictor.image_encoder, predictor.model.sam, config, data, encoder)
    with pytest.raises(torch.OutOfMemoryError):
        TrainingLoop(stage, config, predictor.device).train_step()
