"""How fine-tunes are trained: a recipe for each preset, and the training's settings that follow from it."""

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
"""Pictures that a fine-tune embeds more often than once, at most."""
NEVER = 10**9
"""Steps."""


@dataclass(frozen=True)
class Recipe:
    """How a preset is fine-tuned: a few passes over few samples. The defaults are near the paper's."""

    replay: str | None = None
    """What it has learned before, mixed in against forgetting; None where that is not at hand."""
    validation: str | None = None
    """Of what it has learned before, what shows that it is not forgotten; None where that is not at hand."""
    batch_size: int = 16
    """Half of it replay, where there is one."""
    target_size: int = 512
    learning_rate: float = 1e-4
    decoder_learning_rate: float = 1e-5
    """0 leaves the mask decoder as it is."""
    word_learning_rate: float = 0.0
    """Of words that the replay does not say; without one, nothing tells which they are, and none learns."""
    max_gradient_norm: float = 0.1
    iou_prediction: float = 0.0
    """Weight of the loss that keeps the scores honest."""
    patch: float = 0.0
    """Weight of the loss that tells the patches where the target is."""
    presence: float = 0.0
    """Weight of the presence head's loss. From corrections alone, nearly all of which have a target, it would
    learn that everything is there: it counts where there is replay."""
    precision: Precision = "float32"
    replay_fraction: float = 0.5
    """Of a batch."""
    most_views: int = 1
    """Of each sample, when there are few."""
    steps_per_sample: int = 10
    min_steps: int = 60
    max_steps: int = 600
    patience: int = 4
    """Measurements without a lower loss, VALIDATE_EVERY steps apart, after which the training ends."""

    def steps(self, samples: int) -> int:
        """Optimizer steps for so many samples."""
        return min(self.max_steps, max(self.min_steps, self.steps_per_sample * samples))

    def views(self, samples: int) -> int:
        """How often each of so many samples is seen from another side."""
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
"""By preset; others get a plain Recipe."""
WARMUP_STEPS = 10
CHECKPOINT_EVERY = 20
"""Steps."""
VALIDATE_EVERY = 20
"""Steps."""


def base_validation(preset: str, settings: Settings) -> str | None:
    """The data set that shows what the model knew before; None where nobody has named one.

    What ships with the preset is for the weights that ship with it.
    """
    if settings.validation_data:
        return settings.validation_data
    return _recipe(preset, settings).validation


def _recipe(preset: str, settings: Settings) -> Recipe:
    """The preset's, with what the settings say about data."""
    recipe = RECIPES.get(preset, Recipe())
    if settings.weights is not None:
        recipe = replace(recipe, replay=None, validation=None)
    return replace(recipe, replay=settings.replay_data) if settings.replay_data else recipe


def train_config(run: Run, store: VersionStore, settings: Settings) -> TrainConfig:
    """How the run is trained, by the recipe of its preset, from the version that serves."""
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
        init=store.weights_path(run.base_version),
        steps=recipe.steps(samples),
        checkpoint_every=CHECKPOINT_EVERY,
        device=settings.device,
        **recipe.settings(),
    )


def records_spec(path: Path, images: Path, views: int = 1) -> str:
    """The name under which `finetune.data.dataset.open_dataset` opens records."""
    return f"records:{path}?images={quote(str(images))}&views={views}"
