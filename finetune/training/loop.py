"""The training loop, shared by all stages."""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from finetune.training.config import Precision, TrainConfig
from finetune.training.curves import Curves, open_curves
from finetune.training.losses import TOTAL, NonFiniteLossError
from finetune.training.ranks import Ranks
from finetune.training.stopping import EarlyStopping
from sspsam import CheckpointError
from sspsam.files import replacing
from sspsam.runtime.bfloat16 import is_bfloat16_faster

logger = logging.getLogger(__name__)

CHECKPOINT_NAME = "checkpoint.pt"
LOG_NAME = "log.jsonl"
LOG_EVERY = 20
"""Steps between log lines."""
LOG_FRAME = ("step", "lr", "elapsed_s", "left_s")
"""Fields of a log line that are not loss terms."""
VALIDATION = "validation "
"""Prefix of a validation loss in the log."""
PLACES = frozenset({"output_dir", "device", "workers", "embeddings", "checkpoint_every"})
"""Settings without effect on the training result."""

ProgressFn = Callable[[int, dict[str, float]], None]
"""Called after a step with its number and the running means of the loss terms."""


class Stage(Protocol):
    """Interface of a stage. A step's batch depends only on the seed and its number."""

    @property
    def module(self) -> nn.Module:
        """Contains everything trainable."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer, each with its `lr`."""

    def loss(self, step: int) -> dict[str, Tensor]:
        """Loss terms of a step, including `total`."""


@runtime_checkable
class PartedStage(Stage, Protocol):
    """A stage whose steps can be processed in parts, and that knows their samples."""

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """Samples of the last step in this process."""

    def samples(self, step: int) -> int:
        """Number of samples of a step in this process."""

    def loss(self, step: int, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        """Loss terms of one part; the mean over all parts is the step's."""

    def validate(self, rows: int) -> dict[str, Tensor]:
        """Validation loss terms, means over the whole set, with at most this number of samples at once."""


class NonFiniteGradientError(NonFiniteLossError):
    """The loss is finite, but its gradient is not; lists all samples of the step in this process."""

    what = "the gradient is not finite"


class TrainingLoop:
    """Optimizer, schedule and checkpoints of a stage."""

    def __init__(
        self, stage: Stage, config: TrainConfig, device: torch.device, processes: Ranks | None = None
    ) -> None:
        self.stage = stage
        self.config = config
        self.device = device
        self.processes = processes or Ranks()
        self.optimizer = torch.optim.AdamW(
            stage.parameter_groups(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            [partial(self._learning_rate_factor, float(g["lr"])) for g in self.optimizer.param_groups],
        )
        self._precision = _dtype(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        self.step = 0
        self.stopping = EarlyStopping(config.patience)
        self.parts = config.accumulate
        """Number of parts of this process's share of a batch; increased when memory runs out."""
        self._learning = [p for group in self.optimizer.param_groups for p in group["params"]]

    def run(self, progress: ProgressFn | None = None) -> None:
        """Trains to the last step or an early stop; resumes from the last checkpoint, if any.

        With a validation set, the final weights are those with its lowest loss.
        """
        config = self.config
        config.output_dir.mkdir(parents=True, exist_ok=True)
        self.resume()
        if not self.is_over:
            self._run_curves(progress)
        if self.stopping.weights is not None:
            self.stage.module.load_state_dict(self.stopping.weights, strict=False)

    @property
    def is_over(self) -> bool:
        """Whether training is complete."""
        return self.step >= self.config.steps or self.stopping.is_over

    def _run_curves(self, progress: ProgressFn | None) -> None:
        config = self.config
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
        if config.validation is not None and self.step == 0:
            self._note(self._validate(), 0.0, 0.0, curves)
        while not self.is_over:
            terms = self.train_step()
            means = {name: _running_mean(means.get(name), value) for name, value in terms.items()}
            measured: dict[str, float] = {}
            at_end = self.step == config.steps
            if config.validation is not None and (self.step % config.validate_every == 0 or at_end):
                measured = self._validate()
            last = self.is_over
            if self.step % LOG_EVERY == 0 or last or measured:
                elapsed_s = time.monotonic() - started
                left_s = elapsed_s / (self.step - first) * (config.steps - self.step)
                self._note(means | measured, elapsed_s, left_s, curves)
            if self.processes.is_first and (self.step % config.checkpoint_every == 0 or last):
                self.save()
            if progress:
                progress(self.step, means)

    def _note(self, figures: dict[str, float], elapsed_s: float, left_s: float, curves: list[Curves]) -> None:
        """Writes a log line and a point of each curve; first process only."""
        if not self.processes.is_first:
            return
        self._log(figures, elapsed_s, left_s)
        for curve in curves:
            curve.write(self.step, {**figures, "lr": self._learning_rate()})

    def _validate(self) -> dict[str, float]:
        """Evaluates the validation set and keeps the weights if they are the best so far."""
        assert isinstance(self.stage, PartedStage)
        torch.manual_seed(self.config.seed)
        with torch.no_grad(), self._computing():
            terms = self.stage.validate(-(-self.config.batch_size // self.parts))
        means = self.processes.mean(torch.stack(list(terms.values()))).tolist()  # all processes must agree
        figures = dict(zip(terms, means, strict=True))
        self.stopping.note(self.step, figures[TOTAL], self._learning_state())
        if self.stopping.is_over:
            logger.info(
                "stopping after step %d: no improvement since step %d (validation loss %.4f)",
                self.step,
                self.stopping.step,
                self.stopping.loss,
            )
        return {VALIDATION + name: value for name, value in figures.items()}

    def train_step(self) -> dict[str, float]:
        """One optimizer step; returns its loss terms, means over all processes.

        Raises:
            NonFiniteLossError: the loss or its gradient is NaN or infinite; it names the samples.
        """
        self.stage.module.train()
        terms = self._backward()
        self.processes.average_gradients(self._learning)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._learning, self.config.max_gradient_norm)
        finite = bool(norm.isfinite())
        if not finite and self.scaler.get_scale() <= 1:
            raise NonFiniteGradientError(terms, getattr(self.stage, "sample_ids", ()))
        self.scaler.step(self.optimizer)  # skips the update if a scaled gradient overflowed
        self.scaler.update()
        if finite:
            self.schedule.step()
        self.step += 1
        return terms

    def _backward(self) -> dict[str, float]:
        """Computes the step's gradients; returns the loss terms. Out of memory: retries in parts."""
        while True:
            try:
                sums = self._accumulate()
                break
            except RuntimeError as error:
                if not (_is_out_of_memory(error) and self.parts < self._samples()):
                    raise
            # Not in the handler, where the error still references the tensors of the attempt.
            self.parts = min(2 * self.parts, self._samples())
            logger.warning("step %d: out of memory, retrying the batch in %d parts", self.step, self.parts)
            clear_device_cache(garbage_collection=True)
        means = self.processes.mean(torch.stack(list(sums.values())))
        return dict(zip(sums, means.tolist(), strict=True))

    def _samples(self) -> int:
        """Number of samples of this step in this process; 1 if the stage cannot split its steps."""
        return len(self.stage.sample_ids) if isinstance(self.stage, PartedStage) else 1

    def _accumulate(self) -> dict[str, Tensor]:
        """Gradients of this process's share of the step, part by part; returns its loss terms."""
        torch.manual_seed(hash((self.config.seed, self.step)))
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        with self._computing():
            parts = self._parts_of_step()
        for part in range(parts):
            with self._computing():
                terms = self._part(part, parts)
            self.scaler.scale(terms[TOTAL] / parts).backward()  # type: ignore[no-untyped-call]  # torch has none
            for name, term in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(term)) + term.detach() / parts
        return sums

    def _parts_of_step(self) -> int:
        """`parts`, or the number of the step's samples in this process if that is smaller."""
        if isinstance(self.stage, PartedStage):
            return min(self.parts, self.stage.samples(self.step))
        return 1

    def _part(self, part: int, parts: int) -> dict[str, Tensor]:
        if isinstance(self.stage, PartedStage):
            return self.stage.loss(self.step, part, parts)
        return self.stage.loss(self.step)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """The precision of the run, and attention whose gradient is fast on the device."""
        in_half = self._precision is not torch.float32
        with ExitStack() as settings:
            settings.enter_context(torch.autocast(self.device.type, self._precision, enabled=in_half))
            if self.device.type == "cpu" and in_half:
                # The backward pass of PyTorch's fused attention for CPUs is not made of matrix products: it
                # gains nothing from half precision, and takes half of a step's time.
                settings.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield

    def save(self) -> None:
        """Writes the checkpoint atomically.

        It contains no random state: random numbers derive from the seed and the step's number.
        """
        state = {
            "module": self._learning_state(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "stopping": self.stopping.state_dict(),
            "parts": self.parts,
            "config": self.config.to_dict(),
        }
        with replacing(self.config.output_dir / CHECKPOINT_NAME) as staged:
            torch.save(state, staged)

    def resume(self) -> bool:
        """Resumes from the checkpoint in the output folder, if any.

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
        self.step, self.parts = state["step"], max(self.parts, state.get("parts", 1))
        if state.get("stopping"):
            self.stopping.load_state_dict(state["stopping"])
        self._compare_config(state.get("config", {}))
        return True

    def _compare_config(self, before: dict[str, Any]) -> None:
        """Logs settings changed since the checkpoint: the result will differ from an uninterrupted run."""
        now = self.config.to_dict()
        changed = {name for name in now.keys() & before.keys() if now[name] != before[name]}
        for name in sorted(changed - PLACES):
            logger.warning("%s changed from %r to %r", name, before[name], now[name])

    def _learning_state(self) -> dict[str, Tensor]:
        """Trainable tensors and running statistics."""
        learning = {id(parameter) for parameter in self._learning}
        module = self.stage.module
        state = {name: p.detach() for name, p in module.named_parameters() if id(p) in learning}
        return state | dict(module.named_buffers())

    def _learning_rate_factor(self, learning_rate: float, step: int) -> float:
        """Learning rate of a group with that peak: warm-up from the final rate, then a cosine back to it."""
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


def _dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Of matrix products."""
    if precision == "auto":
        precision = "bfloat16" if is_bfloat16_faster(device) else "float32"
        logger.info("matrix products in %s", precision)
    dtype: torch.dtype = getattr(torch, precision)
    return dtype


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error means out of memory, on a GPU or from the CPU's allocator."""
    return isinstance(error, torch.OutOfMemoryError) or bool(should_reduce_batch_size(error))


def append_json_line(path: Path, line: dict[str, Any]) -> None:
    """Appends one JSON object to a log, on a line of its own also if the one before was cut by a crash."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
        cut = file.read(1) not in (b"", b"\n")
        file.write((b"\n" if cut else b"") + json.dumps(line).encode() + b"\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Reads a run's log, without lines that a crash or a full disk has cut."""
    values = [_read_json(line) for line in path.read_bytes().splitlines()]
    return [value for value in values if isinstance(value, dict)]


def _read_json(line: bytes) -> object:
    """The value of a line; None if it is damaged."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _running_mean(mean: float | None, value: float, weight: float = 0.05) -> float:
    return value if mean is None else (1 - weight) * mean + weight * value
