"""Effect of plain attention, which training in bfloat16 uses on CPUs, on the time of a training step.

Steps of the demo weights' training (`sspsam train --recipe ... --further`), against those with PyTorch's
fused attention, in turn; the rendering of scenes is not included.

    python benchmarks/training_step.py [--steps 6]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from common.sections import table, write_section
from common.timing import medians_in_turn
from torch.nn.attention import SDPBackend, sdpa_kernel

from finetune.data.dataset import open_dataset
from finetune.training import loop
from finetune.training.config import Precision
from finetune.training.recipe import PRESET, further_stage
from finetune.training.stages.ssp import SSPStage
from finetune.training.train import tune_process
from sspsam import Predictor
from sspsam.runtime.bfloat16 import is_bfloat16_faster

WINDOW = 256
"""Samples that are rendered and embedded once, before the first step."""


def main() -> None:
    """Measures both precisions and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    tune_process()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        step = make_step(Path(folder), "float32")
        precisions: list[Precision] = ["float32"]
        if is_bfloat16_faster(step.device):
            precisions.append("bfloat16")
        for precision in precisions:
            step = make_step(Path(folder), precision)
            step.train_step()
            fused, plain = times(step, options.steps)
            rows.append([precision, f"{fused:.2f} s", f"{plain:.2f} s", f"{plain / fused:.2f}"])
    write_section(
        "Training steps",
        f"Steps of stage `ssp` of `{PRESET}`, 32 phrases each, on embedded images: medians of "
        f"{options.steps}, in turn. Training uses plain attention in bfloat16, fused attention in float32.",
        table(["precision", "fused attention", "plain attention", "ratio"], rows),
    )


def make_step(folder: Path, precision: Precision) -> loop.TrainingLoop:
    """A training loop at its start, on one window of samples."""
    config = replace(further_stage(folder), precision=precision, window=WINDOW, steps=WINDOW)
    assert config.replay is not None
    predictor = Predictor.from_preset(PRESET, "cpu")
    stage = SSPStage(predictor, config, open_dataset(config.data), open_dataset(config.replay))
    return loop.TrainingLoop(stage, config, predictor.device)


def times(step: loop.TrainingLoop, count: int) -> tuple[float, float]:
    """Median seconds of a step with fused and with plain attention."""

    def fused() -> None:
        def either(_: object) -> AbstractContextManager[None]:
            return nullcontext()

        with patch.object(loop, "sdpa_kernel", either):
            step.train_step()

    def plain() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            step.train_step()

    ways: dict[str, Callable[[], object]] = {"fused": fused, "plain": plain}
    medians = medians_in_turn(ways, count)
    return medians["fused"], medians["plain"]


if __name__ == "__main__":
    main()
