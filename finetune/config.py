"""What a training run is told."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from finetune.losses import LossWeights
from sspsam.presets import get_preset

Stage = Literal["clip", "sam", "rec", "ssp"]
Precision = Literal["float32", "bfloat16", "float16"]


LOSS_PREFIX = "loss."
RECIPES_FOLDER = Path(__file__).parent / "recipes"
"""Configurations of the paper's trainings."""


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
    """`clip` and `sam` pre-train a small preset's towers from scratch; `rec` and `ssp` are the paper's
    training: first boxes only, without SAM, then masks."""
    data: str = "stickers/train"
    """Data set to train on, as for finetune.data.dataset.open_dataset."""
    replay: str | None = None
    """Data set mixed in against forgetting."""
    replay_fraction: float = 0.5
    """Share of every batch that comes from `replay`, 0..1."""
    validation: str | None = None
    """Data set that is not learned from: what is left in the end are the weights of its lowest loss. At most
    its first `window` samples. Stage `ssp`."""
    validate_every: int = 20
    """Steps between two measurements of `validation`; the start and the end are measured, too."""
    patience: int = 0
    """Measurements in a row without a lower loss after which the training ends; 0: it goes to the end."""
    weights: tuple[Path, ...] = ()
    """Safetensors whose tensors replace the preset's own, later files over earlier ones."""
    init: Path | None = None
    """Trainable tensors of a fine-tuned version to start from."""
    from_scratch: bool = False
    """The adapters are random: set their scale from the data first."""
    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 32
    """Samples per step, of all processes together."""
    accumulate: int = 1
    """Parts that a process's share of a batch goes through the model in, one after the other; the gradient is
    that of the whole. Stages `rec` and `ssp`."""
    window: int = 6000
    """Samples whose pictures are embedded and shuffled together; bounds the memory."""
    stream: bool = False
    """Read and encode the pictures of each step when it comes, instead of window by window: for data sets of
    any size, and needed to place and flip pictures. Always so in stage `rec`."""
    random_placement: bool = False
    """Put pictures at random places of the CLIP canvas; where they lie when serving, otherwise."""
    flip_probability: float = 0.0
    """How often pictures are mirrored, 0..1; left and right change places in the phrase as well."""
    click_fraction: float = 0.0
    """Part of the answers that clicks on their faults correct before they are judged, 0..1, so that phrases
    and clicks work together. Stage `ssp`; not in the paper."""
    embeddings: Path | None = None
    """Folder that keeps SAM's image embeddings, float16, so that each picture is encoded once."""
    workers: int = 0
    """Processes that read pictures ahead; 0: none but this one."""
    target_size: int = 512
    """Side of the square, px, on which mask losses are computed."""
    learning_rate: float = 1e-4
    decoder_learning_rate: float = 1e-5
    """Of SAM's mask decoder."""
    word_learning_rate: float = 0.0
    """Of the embeddings of words that `replay` does not say: textual inversion (arXiv 2208.01618), which
    changes no phrase without them. 0 leaves the text tower as it is. Stage `ssp`, not with `stream`."""
    text_learning_rate: float = 0.0
    """Of CLIP's text tower, for models that are made from nothing; 0, as in the paper: it is frozen. Versions
    cannot hold it: join the result with the rest in a bundle. Stages `rec` and `ssp`."""
    decoder_frozen_steps: int = 0
    """First steps in which the mask decoder does not learn."""
    final_learning_rate: float = 1e-6
    """Where the cosine ends."""
    warmup_steps: int = 100
    weight_decay: float = 1e-4
    max_gradient_norm: float = 0.1
    loss: LossWeights = field(default_factory=LossWeights)
    precision: Precision = "float32"
    """What matrix products are computed in; weights and losses stay float32. With float16 the loss is scaled
    against vanishing gradients, and a step whose gradient overflows is left out."""
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
        if self.learning_rate < self.final_learning_rate:
            raise ConfigError(f"learning_rate {self.learning_rate} lies below final_learning_rate")
        self._check_stream()
        self._check_validation()
        _require(
            self.text_learning_rate == 0 or self.stage in ("rec", "ssp"),
            f"stage {self.stage} cannot teach the text tower alone",
        )
        _require(
            self.word_learning_rate == 0
            or (self.stage == "ssp" and self.replay is not None and not self.stream),
            "word_learning_rate needs stage ssp, replay, which says what words are known, and no stream",
        )

    def _check_validation(self) -> None:
        _require(
            self.validate_every >= 1 and self.patience >= 0,
            "validate_every must be at least 1, patience at least 0",
        )
        _require(self.validation is not None or self.patience == 0, "patience needs a validation set")
        _require(
            self.validation is None or self.stage == "ssp",
            f"stage {self.stage} cannot measure a validation set",
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
            "from_scratch needs whole windows: it does not go with a stream",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for cards and logs."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def read_config(path: Path, overrides: Mapping[str, Any]) -> TrainConfig:
    """Reads a TOML file whose keys are TrainConfig's fields.

    Args:
        path: The file, or the name of a recipe that ships with the package, such as `refcoco-224`.
        overrides: Win over the file; `loss.dice` and the like win over parts of it.

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
    """Builds a TrainConfig from plain values; text is converted as from a command line, empty text is none.

    Raises:
        ConfigError: a key is unknown, a needed one is missing, or a value has the wrong type.
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
    """`loss.dice` becomes an entry of `loss`, over what a file says of it."""
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
