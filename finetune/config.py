"""What a training run is told."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from finetune.losses import LossWeights
from sspsam.presets import get_preset

Stage = Literal["clip", "sam", "ssp"]
Precision = Literal["float32", "bfloat16"]


class ConfigError(ValueError):
    """The settings contradict each other or name something that does not exist."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run of one stage. The defaults of the optimisation are the paper's."""

    preset: str
    """Key of sspsam.PRESETS."""
    output_dir: Path
    """Where checkpoints, the log and the result go; a run that finds its checkpoint there goes on from it."""
    stage: Stage = "ssp"
    """`clip` and `sam` pre-train a small preset's towers from scratch; `ssp` is the paper's training."""
    data: str = "stickers/train"
    """Data set to train on, as for finetune.data.dataset.open_dataset."""
    replay: str | None = None
    """Data set mixed in against forgetting."""
    replay_fraction: float = 0.5
    """Share of every batch that comes from `replay`, 0..1."""
    weights: tuple[Path, ...] = ()
    """Safetensors whose tensors replace the preset's own, later files over earlier ones."""
    init: Path | None = None
    """Trainable tensors of a fine-tuned version to start from."""
    from_scratch: bool = False
    """The adapters are random: set their scale from the data first."""
    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 32
    """Samples per step."""
    window: int = 6000
    """Samples whose pictures are embedded and shuffled together; bounds the memory."""
    target_size: int = 512
    """Side of the square, px, on which mask losses are computed."""
    learning_rate: float = 1e-4
    decoder_learning_rate: float = 1e-5
    """Of SAM's mask decoder."""
    box_only_steps: int = 0
    """First steps, in which only boxes and patches are learned, without SAM."""
    decoder_frozen_steps: int = 0
    """First steps in which the mask decoder does not learn."""
    final_learning_rate: float = 1e-6
    """Where the cosine ends."""
    warmup_steps: int = 100
    weight_decay: float = 1e-4
    max_gradient_norm: float = 0.1
    loss: LossWeights = field(default_factory=LossWeights)
    precision: Precision = "float32"
    """What matrix products are computed in; weights and losses stay float32."""
    seed: int = 0
    device: str = "auto"
    checkpoint_every: int = 200
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        get_preset(self.preset)
        if self.steps < 1 or self.batch_size < 1 or self.window < 1 or self.checkpoint_every < 1:
            raise ConfigError("steps, batch_size, window and checkpoint_every must be at least 1")
        if not 0 <= self.replay_fraction < 1:
            raise ConfigError(f"replay_fraction must be in 0..1, 1 excluded, got {self.replay_fraction}")
        if self.learning_rate < self.final_learning_rate:
            raise ConfigError(f"learning_rate {self.learning_rate} lies below final_learning_rate")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for cards and logs."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def read_config(path: Path, overrides: Mapping[str, Any]) -> TrainConfig:
    """Reads a TOML file whose keys are TrainConfig's fields; `overrides` win over the file.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, or a value has the wrong type.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    return make_config(values | dict(overrides))


def make_config(values: Mapping[str, Any]) -> TrainConfig:
    """Builds a TrainConfig from plain values; text is converted, as from a command line.

    Raises:
        ConfigError: a key is unknown, a needed one is missing, or a value has the wrong type.
    """
    known = {field.name for field in fields(TrainConfig)}
    if unknown := sorted(values.keys() - known):
        raise ConfigError(f"unknown setting {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    hints = get_type_hints(TrainConfig)
    try:
        return TrainConfig(**{name: _convert(hints[name], value) for name, value in values.items()})
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error


def _convert(hint: object, value: Any) -> Any:
    if hint == tuple[Path, ...]:
        return tuple(Path(item) for item in ([value] if isinstance(value, str) else value))
    if hint in (Path, Path | None):
        return Path(value)
    if hint is LossWeights:
        return LossWeights(**value)
    return hint(value) if hint in (int, float) else value


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
