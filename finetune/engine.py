"""The training loop: the same for every stage."""

from __future__ import annotations

import json
import math
import pickle
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from finetune.config import TrainConfig
from finetune.losses import TOTAL
from sspsam.checkpoints import CheckpointError

CHECKPOINT_NAME = "checkpoint.pt"
LOG_NAME = "log.jsonl"
LOG_EVERY = 20
"""Steps between lines of the log."""

ProgressFn = Callable[[int, dict[str, float]], None]
"""Called after a step with its number and the running means of the loss terms."""


class Stage(Protocol):
    """What the loop needs of a stage. A step's batch follows from the seed and its number alone."""

    @property
    def module(self) -> nn.Module:
        """Holds everything that learns."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer, each with its `lr`."""

    def loss(self, step: int) -> dict[str, Tensor]:
        """The terms of that step's loss, `total` among them."""


class TrainingLoop:
    """Optimizer, schedule and checkpoints around a stage."""

    def __init__(self, stage: Stage, config: TrainConfig, device: torch.device) -> None:
        self.stage = stage
        self.config = config
        self.device = device
        self.optimizer = torch.optim.AdamW(
            stage.parameter_groups(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._learning_rate_factor)
        self.step = 0
        self._learning = [p for group in self.optimizer.param_groups for p in group["params"]]

    def run(self, progress: ProgressFn | None = None) -> None:
        """Trains to the last step, from the last checkpoint if there is one."""
        config = self.config
        config.output_dir.mkdir(parents=True, exist_ok=True)
        self.resume()
        means: dict[str, float] = {}
        started = time.monotonic()
        while self.step < config.steps:
            terms = self.train_step()
            means = {name: _running_mean(means.get(name), value) for name, value in terms.items()}
            if self.step % LOG_EVERY == 0 or self.step == config.steps:
                self._log(means, time.monotonic() - started)
            if self.step % config.checkpoint_every == 0 or self.step == config.steps:
                self.save()
            if progress:
                progress(self.step, means)

    def train_step(self) -> dict[str, float]:
        """One optimizer step; returns its loss terms."""
        torch.manual_seed(hash((self.config.seed, self.step)))
        self.stage.module.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            terms = self.stage.loss(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        terms[TOTAL].backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        nn.utils.clip_grad_norm_(self._learning, self.config.max_gradient_norm, error_if_nonfinite=True)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        return {name: float(term.detach()) for name, term in terms.items()}

    def save(self) -> None:
        """Writes the checkpoint: aside first, then moved into place."""
        path = self.config.output_dir / CHECKPOINT_NAME
        aside = path.with_suffix(".part")
        state = {
            "module": self._learning_state(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
        }
        torch.save(state, aside)
        aside.replace(path)

    def resume(self) -> bool:
        """Goes on from the checkpoint in the output folder, if there is one.

        Raises:
            CheckpointError: it is damaged.
        """
        path = self.config.output_dir / CHECKPOINT_NAME
        if not path.is_file():
            return False
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise CheckpointError(
                f"the checkpoint {path} is damaged: delete it to start the run again ({error})"
            ) from error
        self.stage.module.load_state_dict(state["module"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step = state["step"]
        return True

    def _learning_state(self) -> dict[str, Tensor]:
        """What learns, and the running statistics beside it."""
        learning = {id(parameter) for parameter in self._learning}
        module = self.stage.module
        state = {name: p.detach() for name, p in module.named_parameters() if id(p) in learning}
        return state | dict(module.named_buffers())

    def _learning_rate_factor(self, step: int) -> float:
        config = self.config
        floor = config.final_learning_rate / config.learning_rate
        if step < config.warmup_steps:
            return floor + (1 - floor) * (step + 1) / config.warmup_steps
        progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def _log(self, means: dict[str, float], elapsed_s: float) -> None:
        line = {"step": self.step, "lr": self.schedule.get_last_lr()[0], "elapsed_s": round(elapsed_s, 1)}
        append_json_line(self.config.output_dir / LOG_NAME, line | {k: round(v, 5) for k, v in means.items()})


def append_json_line(path: Path, line: dict[str, Any]) -> None:
    """Appends one JSON object to a log."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Reads a run's log."""
    lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _running_mean(mean: float | None, value: float, weight: float = 0.05) -> float:
    return value if mean is None else (1 - weight) * mean + weight * value
