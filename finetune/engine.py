"""The training loop: the same for every stage."""

from __future__ import annotations

import json
import logging
import math
import pickle
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from finetune.config import TrainConfig
from finetune.curves import Curves, open_curves
from finetune.losses import TOTAL, NonFiniteLossError
from finetune.processes import Processes
from sspsam.checkpoints import CheckpointError

logger = logging.getLogger(__name__)

CHECKPOINT_NAME = "checkpoint.pt"
LOG_NAME = "log.jsonl"
LOG_EVERY = 20
"""Steps between lines of the log."""
LOG_FRAME = ("step", "lr", "elapsed_s", "left_s")
"""Fields of a line that are no loss terms."""
PLACES = frozenset({"output_dir", "device", "workers", "embeddings", "checkpoint_every"})
"""Settings that change nothing about what is learned."""

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


class PartedStage(Stage, Protocol):
    """A stage whose steps can be taken in parts, and that knows whose they are."""

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """Samples of the last step in this process."""

    def loss(self, step: int, part: int = 0) -> dict[str, Tensor]:
        """The terms of one of `config.accumulate` parts; those of all parts average to the step's."""


class NonFiniteGradientError(NonFiniteLossError):
    """The loss is finite, but its gradient is not: the samples are all of the step's in this process."""

    what = "the gradient is not finite"


class TrainingLoop:
    """Optimizer, schedule and checkpoints around a stage."""

    def __init__(
        self, stage: Stage, config: TrainConfig, device: torch.device, processes: Processes | None = None
    ) -> None:
        self.stage = stage
        self.config = config
        self.device = device
        self.processes = processes or Processes()
        self.optimizer = torch.optim.AdamW(
            stage.parameter_groups(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            [partial(self._learning_rate_factor, float(g["lr"])) for g in self.optimizer.param_groups],
        )
        self._precision: torch.dtype = getattr(torch, config.precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        self.step = 0
        self._learning = [p for group in self.optimizer.param_groups for p in group["params"]]

    def run(self, progress: ProgressFn | None = None) -> None:
        """Trains to the last step, from the last checkpoint if there is one."""
        config = self.config
        config.output_dir.mkdir(parents=True, exist_ok=True)
        self.resume()
        if self.step >= config.steps:
            return
        curves = open_curves(config, self.step) if self.processes.is_first else []
        failed = True
        try:
            self._run(curves, progress)
            failed = False
        finally:
            for curve in curves:
                curve.close(failed)

    def _run(self, curves: list[Curves], progress: ProgressFn | None) -> None:
        config = self.config
        means: dict[str, float] = {}
        first, started = self.step, time.monotonic()
        while self.step < config.steps:
            terms = self.train_step()
            means = {name: _running_mean(means.get(name), value) for name, value in terms.items()}
            last = self.step == config.steps
            if self.processes.is_first and (self.step % LOG_EVERY == 0 or last):
                elapsed_s = time.monotonic() - started
                self._log(means, elapsed_s, elapsed_s / (self.step - first) * (config.steps - self.step))
                for curve in curves:
                    curve.write(self.step, {**means, "lr": self._learning_rate()})
            if self.processes.is_first and (self.step % config.checkpoint_every == 0 or last):
                self.save()
            if progress:
                progress(self.step, means)

    def train_step(self) -> dict[str, float]:
        """One optimizer step; returns its loss terms, means over all processes.

        Raises:
            NonFiniteLossError: the loss or its gradient is NaN or infinite; it names the samples.
        """
        torch.manual_seed(hash((self.config.seed, self.step)))
        self.stage.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        terms = self._backward()
        self.processes.average_gradients(self._learning)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._learning, self.config.max_gradient_norm)
        finite = bool(norm.isfinite())
        if not finite and self.scaler.get_scale() <= 1:
            raise NonFiniteGradientError(terms, getattr(self.stage, "sample_ids", ()))
        self.scaler.step(self.optimizer)  # leaves it as it is where a scaled gradient overflowed
        self.scaler.update()
        if finite:
            self.schedule.step()
        self.step += 1
        return terms

    def _backward(self) -> dict[str, float]:
        """Gradients of the step, part by part; returns the loss terms."""
        parts = self.config.accumulate
        sums: dict[str, Tensor] = {}
        for part in range(parts):
            with torch.autocast(
                self.device.type, self._precision, enabled=self._precision is not torch.float32
            ):
                terms = self.stage.loss(self.step) if parts == 1 else self._part(part)
            self.scaler.scale(terms[TOTAL] / parts).backward()  # type: ignore[no-untyped-call]  # torch has none
            for name, term in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(term)) + term.detach() / parts
        means = self.processes.mean(torch.stack(list(sums.values())))
        return dict(zip(sums, means.tolist(), strict=True))

    def _part(self, part: int) -> dict[str, Tensor]:
        return cast(PartedStage, self.stage).loss(self.step, part)

    def save(self) -> None:
        """Writes the checkpoint: aside first, then moved into place.

        It holds no state of random numbers: each step's follow from the seed and its number.
        """
        path = self.config.output_dir / CHECKPOINT_NAME
        aside = path.with_suffix(".part")
        state = {
            "module": self._learning_state(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "config": self.config.to_dict(),
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
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self._compare_config(state.get("config", {}))
        return True

    def _compare_config(self, before: dict[str, Any]) -> None:
        """Says what has changed since the checkpoint: the run will not be as an unbroken one."""
        now = self.config.to_dict()
        changed = {name for name in now.keys() & before.keys() if now[name] != before[name]}
        for name in sorted(changed - PLACES):
            logger.warning("%s was %r before, and is %r now", name, before[name], now[name])

    def _learning_state(self) -> dict[str, Tensor]:
        """What learns, and the running statistics beside it."""
        learning = {id(parameter) for parameter in self._learning}
        module = self.stage.module
        state = {name: p.detach() for name, p in module.named_parameters() if id(p) in learning}
        return state | dict(module.named_buffers())

    def _learning_rate_factor(self, learning_rate: float, step: int) -> float:
        """Of a group with that peak: up from the final rate, then along a cosine back to it."""
        config = self.config
        floor = min(1.0, config.final_learning_rate / learning_rate) if learning_rate > 0 else 1.0
        if step < config.warmup_steps:
            return floor + (1 - floor) * (step + 1) / config.warmup_steps
        progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def _learning_rate(self) -> float:
        return float(self.schedule.get_last_lr()[0])

    def _log(self, means: dict[str, float], elapsed_s: float, left_s: float) -> None:
        line: dict[str, float] = {
            "step": self.step,
            "lr": self._learning_rate(),
            "elapsed_s": round(elapsed_s, 3),
            "left_s": round(left_s, 3),
        }
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
