"""Fine-tuning recipes: one per preset, and the training configuration derived from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from backend.settings import Settings
from finetune.data.records import read_records
from finetune.data.stickers.demo import SCENES, VALIDATION
from sspsam import VersionStore
from worker.finetuning.runs import STOPPING_FILE, TRAIN_FILE, Run, run_folder

if TYPE_CHECKING:
    from finetune.training.config import Precision, TrainConfig

EMBEDDED_VIEWS = 160
"""Maximum number of images that a fine-tune embeds more than once."""
NEVER = 10**9
"""Steps."""


@dataclass(frozen=True)
class Recipe:
    """Fine-tuning recipe of a preset: a few passes over few samples. Defaults are close to the paper's."""

    replay: str | None = None
    """Data set of the earlier training, replayed against forgetting; None if not available."""
    validation: str | None = None
    """Validation set of the earlier training, which measures forgetting; None if not available."""
    batch_size: int = 16
    """Half of it is replay, if there is replay data."""
    target_size: int = 512
    learning_rate: float = 1e-4
    decoder_learning_rate: float = 1e-5
    """0 freezes the mask decoder."""
    word_learning_rate: float = 0.0
    """For words that are absent from the replay data; without replay data, no token embedding is trained."""
    max_gradient_norm: float = 0.1
    iou_prediction: float = 0.0
    """Weight of the loss that calibrates the scores."""
    patch: float = 0.0
    """Weight of the loss that locates the target in the patches."""
    presence: float = 0.0
    """Weight of the presence head's loss. Used only with replay data: nearly all corrections have a target,
    so from them alone the head would learn that everything is present."""
    precision: Precision = "float32"
    replay_fraction: float = 0.5
    """Samples in a batch."""
    most_views: int = 1
    """Augmented views of each sample, if there are few samples."""
    steps_per_sample: int = 10
    min_steps: int = 60
    max_steps: int = 600
    patience: int = 4
    """Early stopping: number of measurements without a lower loss, VALIDATE_EVERY steps apart."""

    def steps(self, samples: int) -> int:
        """Number of optimizer steps, given the number of samples."""
        return min(self.max_steps, max(self.min_steps, self.steps_per_sample * samples))

    def views(self, samples: int) -> int:
        """Number of augmented views of each sample, given the number of samples."""
        return max(1, min(self.most_views, EMBEDDED_VIEWS // max(1, samples)))

    def settings(self) -> dict[str, Any]:
        """The fields of TrainConfig that do not depend on the data."""
        from finetune.training.losses import LossWeights

        return {
            "replay": self.replay,
            "replay_fraction": self.replay_fraction,
            "batch_size": self.batch_size,
            "target_size": self.target_size,
            "learning_rate": self.learning_rate,
            "decoder_learning_rate": self.decoder_learning_rate,
            "word_learning_rate": self.word_learning_rate if self.replay else 0.0,
            "decoder_frozen_steps": 0 if self.decoder_learning_rate else NEVER,
            "max_gradient_norm": self.max_gradient_norm,
            "loss": LossWeights(
                iou_prediction=self.iou_prediction,
                patch=self.patch,
                presence=self.presence if self.replay else 0.0,
            ),
            "precision": self.precision,
            "warmup_steps": WARMUP_STEPS,
        }


RECIPES: Mapping[str, Recipe] = {
    "ssp-sam-demo": Recipe(
        replay=f"{SCENES}&count=40",
        validation=VALIDATION,
        batch_size=12,
        target_size=160,
        learning_rate=2e-5,
        decoder_learning_rate=0.0,
        word_learning_rate=2e-2,
        max_gradient_norm=1.0,
        iou_prediction=1.0,
        presence=1.0,
        most_views=8,
        steps_per_sample=10,
        min_steps=60,
        max_steps=300,
    ),
    "ssp-sam-test": Recipe(
        batch_size=12, target_size=64, learning_rate=3e-3, decoder_learning_rate=3e-3, max_steps=60
    ),
}
"""By preset; the default Recipe for all others."""
WARMUP_STEPS = 10
CHECKPOINT_EVERY = 20
"""Steps."""
VALIDATE_EVERY = 20
"""Steps."""


def base_validation(preset: str, settings: Settings) -> str | None:
    """The base validation set, which measures forgetting; None if not configured.

    The preset's default applies only to the weights that ship with it.
    """
    if settings.validation_data:
        return settings.validation_data
    return _recipe(preset, settings).validation


def _recipe(preset: str, settings: Settings) -> Recipe:
    """The preset's recipe, with the data sets from the settings."""
    recipe = RECIPES.get(preset, Recipe())
    if settings.weights is not None:
        recipe = replace(recipe, replay=None, validation=None)
    return replace(recipe, replay=settings.replay_data) if settings.replay_data else recipe


def train_config(run: Run, store: VersionStore, settings: Settings) -> TrainConfig:
    """Training configuration of a run: its preset's recipe, starting from the version that the run names."""
    from finetune.training.config import TrainConfig

    folder, recipe = run_folder(settings.model_dir, run.run_id), _recipe(run.preset, settings)
    samples = len(read_records(folder / TRAIN_FILE))
    stops = (folder / STOPPING_FILE).is_file()
    return TrainConfig(
        preset=run.preset,
        output_dir=folder / "training",
        data=records_spec(folder / TRAIN_FILE, settings.images_dir, recipe.views(samples)),
        validation=records_spec(folder / STOPPING_FILE, settings.images_dir) if stops else None,
        validate_every=VALIDATE_EVERY,
        patience=recipe.patience if stops else 0,
        weights=() if settings.weights is None else (settings.weights.resolve(),),
        init=store.weights_path(run.start_version),
        steps=recipe.steps(samples),
        checkpoint_every=CHECKPOINT_EVERY,
        device=settings.device,
        **recipe.settings(),
    )


def records_spec(path: Path, images: Path, views: int = 1) -> str:
    """The data set name with which `finetune.data.dataset.open_dataset` opens records."""
    return f"records:{path}?images={quote(str(images))}&views={views}"
