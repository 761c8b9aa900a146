"""Configuration of a training run."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from finetune.training.losses import LossWeights
from sspsam.presets import get_preset

Stage = Literal["clip", "sam", "rec", "ssp", "wording"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


LOSS_PREFIX = "loss."
RECIPES_FOLDER = Path(__file__).parents[1] / "recipes"
"""Recipes of the paper's trainings."""


class ConfigError(ValueError):
    """The settings contradict each other, or name something unknown."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run of one stage. Optimisation defaults are the paper's."""

    preset: str
    """Key of sspsam.PRESETS."""
    output_dir: Path
    """Folder of checkpoints, log and result; a run resumes from a checkpoint found there."""
    stage: Stage = "ssp"
    """`clip` and `sam` pre-train a small preset's towers from scratch; `rec` and `ssp` are the paper's
    training: first boxes only, without SAM, then masks. `wording` teaches the text tower of a small preset
    other wordings of the phrases that it knows.
    """
    data: str = "stickers/train"
    """Data set to train on, as for finetune.data.dataset.open_dataset."""
    replay: str | None = None
    """Data set mixed in against forgetting."""
    replay_fraction: float = 0.5
    """Fraction of every batch that comes from `replay`, 0..1; at least one sample does, and one does not."""
    validation: str | None = None
    """Validation set: the weights with its lowest loss are kept. At most its first `window` samples are used.
    Stage `ssp`.
    """
    validate_every: int = 20
    """Steps between evaluations of `validation`, which also run at the start and the end."""
    patience: int = 0
    """Evaluations in a row without a lower loss after which training stops; 0: never."""
    weights: tuple[Path, ...] = ()
    """Safetensors whose tensors replace the preset's own; later files override earlier ones."""
    init: Path | None = None
    """Trainable tensors of a fine-tuned version to start from."""
    from_scratch: bool = False
    """The adapters are random: initialise their scale from the data."""
    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 32
    """Samples per step, over all processes."""
    accumulate: int = 1
    """Number of parts in which a process's share of a batch is processed sequentially; the gradient is that
    of the whole. A share of fewer samples has one part for each. Stages `rec` and `ssp`.
    """
    window: int = 6000
    """Number of samples embedded and shuffled together; limits the memory. Every epoch visits all windows."""
    stream: bool = False
    """Read and encode images at each step instead of window by window: for data sets of any size, and
    required for placement and flips. Stages `rec` and `ssp`.
    """
    random_placement: bool = False
    """Place images randomly in the padded CLIP input; otherwise as in serving."""
    flip_probability: float = 0.0
    """Probability of mirroring an image, 0..1; left and right are swapped in the phrase as well."""
    click_fraction: float = 0.0
    """Fraction of answers corrected by simulated clicks before the loss, 0..1, so that phrases and clicks
    work together. Stage `ssp`; not in the paper.
    """
    embeddings: Path | None = None
    """Cache folder for SAM's image embeddings, float16, so that each image is encoded once."""
    workers: int = 0
    """Processes that read images ahead; 0: none."""
    target_size: int = 512
    """Side of the square, px, on which mask losses are computed."""
    learning_rate: float = 1e-4
    decoder_learning_rate: float = 1e-5
    """Learning rate of SAM's mask decoder."""
    word_learning_rate: float = 0.0
    """Learning rate of the embeddings of words that `replay` does not contain: textual inversion
    (arXiv 2208.01618), which changes no phrase without them. 0: text tower unchanged. Stage `ssp`, without
    `stream`.
    """
    text_learning_rate: float = 0.0
    """Learning rate of CLIP's text tower, for models trained from scratch; 0, as in the paper: frozen.
    Versions cannot contain it: join the result with the rest in a bundle. Stages `rec` and `ssp`.
    """
    decoder_frozen_steps: int = 0
    """Number of first steps in which the mask decoder is frozen."""
    final_learning_rate: float = 1e-6
    """Final value of the cosine schedule."""
    warmup_steps: int = 100
    weight_decay: float = 1e-4
    max_gradient_norm: float = 0.1
    loss: LossWeights = field(default_factory=LossWeights)
    precision: Precision = "float32"
    """Precision of matrix products; weights and losses stay float32. With float16 the loss is scaled against
    underflow, and a step with overflowing gradients is skipped. `auto` is bfloat16 where the device is faster
    in it, and float32 elsewhere.
    """
    seed: int = 0
    device: str = "auto"
    checkpoint_every: int = 200
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        get_preset(self.preset)
        _require(self.stage in get_args(Stage), f"stage is {self.stage!r}, expected {_one_of(Stage)}")
        _require(
            self.precision in get_args(Precision),
            f"precision is {self.precision!r}, expected {_one_of(Precision)}",
        )
        if self.steps < 1 or self.batch_size < 1 or self.window < 1 or self.checkpoint_every < 1:
            raise ConfigError("steps, batch_size, window and checkpoint_every must be at least 1")
        if not 0 <= self.replay_fraction < 1:
            raise ConfigError(f"replay_fraction must be in 0..1, 1 excluded, got {self.replay_fraction}")
        _require(
            self.replay is None or self.batch_size >= 2,
            f"batch_size must be at least 2 with replay, got {self.batch_size}",
        )
        if self.learning_rate < self.final_learning_rate:
            raise ConfigError(f"learning_rate {self.learning_rate} lies below final_learning_rate")
        self._check_stream()
        self._check_validation()
        _require(
            self.text_learning_rate == 0 or self.stage in ("rec", "ssp"),
            f"stage {self.stage} cannot train the text tower alone",
        )
        _require(
            self.word_learning_rate == 0
            or (self.stage == "ssp" and self.replay is not None and not self.stream),
            "word_learning_rate needs stage ssp, replay, which defines the known words, and no stream",
        )

    def _check_validation(self) -> None:
        _require(
            self.validate_every >= 1 and self.patience >= 0,
            "validate_every must be at least 1, patience at least 0",
        )
        _require(self.validation is not None or self.patience == 0, "patience needs a validation set")
        _require(
            self.validation is None or self.stage == "ssp",
            f"stage {self.stage} cannot evaluate a validation set",
        )

    def _check_stream(self) -> None:
        _require(
            0 <= self.flip_probability <= 1, f"flip_probability must be in 0..1, got {self.flip_probability}"
        )
        _require(0 <= self.click_fraction <= 1, f"click_fraction must be in 0..1, got {self.click_fraction}")
        _require(
            self.accumulate >= 1 and self.workers >= 0, "accumulate must be at least 1, workers at least 0"
        )
        _require(
            self.accumulate == 1 or self.stage in ("rec", "ssp"),
            f"stage {self.stage} cannot accumulate gradients",
        )
        streams = self.stream
        varied = self.random_placement or self.flip_probability > 0 or self.embeddings is not None
        _require(
            streams or not varied, "random_placement, flip_probability and embeddings need stream = true"
        )
        _require(
            not (streams and self.from_scratch),
            "from_scratch needs whole windows: it does not work with a stream",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for cards and logs."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def read_config(path: Path, overrides: Mapping[str, Any]) -> TrainConfig:
    """Reads a TOML file whose keys are TrainConfig's fields.

    Args:
        path: The file, or the name of a bundled recipe, such as `refcoco-224`.
        overrides: Override the file; `loss.dice` and the like override single entries.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, or a value has the wrong type.
    """
    recipe = RECIPES_FOLDER / f"{path}.toml"
    if not path.exists() and recipe.is_file():
        path = recipe
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        recipes = ", ".join(sorted(file.stem for file in RECIPES_FOLDER.glob("*.toml")))
        raise ConfigError(f"cannot read {path}: {error.strerror}; known recipes: {recipes}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    if isinstance(values.get("loss"), dict):
        values |= {f"{LOSS_PREFIX}{name}": weight for name, weight in values.pop("loss").items()}
    return make_config(values | dict(overrides))


def make_config(values: Mapping[str, Any]) -> TrainConfig:
    """Builds a TrainConfig from plain values; text is converted as from a command line, empty text means
    None.

    Raises:
        ConfigError: a key is unknown, a required one is missing, or a value has the wrong type.
    """
    known = {field.name for field in fields(TrainConfig)}
    values = _nest(values)
    if unknown := sorted(values.keys() - known):
        raise ConfigError(f"unknown setting {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    hints = get_type_hints(TrainConfig)
    try:
        return TrainConfig(**{name: _convert(name, hints[name], value) for name, value in values.items()})
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """`loss.dice` becomes an entry of `loss`, overriding the file's."""
    nested = {key: value for key, value in values.items() if not key.startswith(LOSS_PREFIX)}
    weights = {
        key.removeprefix(LOSS_PREFIX): value for key, value in values.items() if key.startswith(LOSS_PREFIX)
    }
    if weights:
        nested["loss"] = {**nested.get("loss", {}), **weights}
    return nested


def _convert(name: str, hint: object, value: Any) -> Any:
    """The value as the field's type.

    Raises:
        ConfigError: it is none.
    """
    if value == "" and hint in (Path | None, str | None):
        return None
    if hint == tuple[Path, ...]:
        items = value.split(",") if isinstance(value, str) else value
        value = [item for item in items if item != ""]
    try:
        if hint is LossWeights:
            return LossWeights(**_adapter(dict[str, float]).validate_python(value))
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        where = [".".join([name, *map(str, wrong["loc"])]) for wrong in error.errors()]
        reasons = [f"{place}: {wrong['msg']}" for place, wrong in zip(where, error.errors(), strict=True)]
        raise ConfigError(f"{'; '.join(reasons)} (got {value!r:.80})") from error


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def _one_of(literal: object) -> str:
    return "one of: " + ", ".join(get_args(literal))


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
