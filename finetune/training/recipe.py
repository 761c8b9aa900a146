"""Recipe of the packaged weights: from scratch, and continued from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from finetune.training.config import TrainConfig
from finetune.training.loop import ProgressFn
from finetune.training.losses import LossWeights
from finetune.training.train import WEIGHTS_NAME, train, write_bundle
from sspsam.checkpoints.bundles import WEIGHTS_FOLDER

Progress = Callable[[TrainConfig], ProgressFn]

PRESET = "ssp-sam-demo"
BUNDLE_NAME = f"{PRESET}.safetensors"
FAMILIES = "noun,noun,place,ordinal,ordinal,size,size,several,colour,relation,relation,none,none"
"""Places are trained with the others; names must not be rarer than absent objects, or they are denied."""
PHRASES = f"stickers/train?phrases=16&count=100000&families={FAMILIES}"
"""Scenes of all nouns."""
CORE_PHRASES = f"{PHRASES}&nouns=core&seed=1"
"""Scenes of the core nouns: half of the data."""
FURTHER_FAMILIES = (
    "noun,noun,place,ordinal,ordinal,ordinal,size,size,size,size,several,colour,colour,"
    "relation,relation,relation,none,none"
)
"""The hardest phrase types are sampled most."""
FURTHER_PHRASES = f"stickers/train?phrases=16&count=100000&families={FURTHER_FAMILIES}"


def demo_stages(folder: Path) -> tuple[TrainConfig, ...]:
    """The four stages: recognition, segmentation by points and boxes, phrases to places, phrases to masks.

    The first two are independent.
    """
    clip = TrainConfig(
        preset=PRESET, stage="clip", output_dir=folder / "clip", data="stickers/train",
        steps=4100, batch_size=128, learning_rate=2e-3, final_learning_rate=1e-5, warmup_steps=100,
        weight_decay=0.05, max_gradient_norm=1.0, precision="auto",
    )  # fmt: skip
    sam = TrainConfig(
        preset=PRESET, stage="sam", output_dir=folder / "sam", data="stickers/train",
        steps=5200, batch_size=8, learning_rate=1e-3, final_learning_rate=1e-5, warmup_steps=50,
        weight_decay=0.01, max_gradient_norm=1.0, precision="auto",
    )  # fmt: skip
    phrases = TrainConfig(
        preset=PRESET, stage="rec", output_dir=folder / "rec", data=PHRASES,
        weights=(folder / "clip" / WEIGHTS_NAME, folder / "sam" / WEIGHTS_NAME),
        replay=CORE_PHRASES, replay_fraction=0.5,
        steps=2100, batch_size=32, window=3200,
        learning_rate=1e-3, final_learning_rate=4e-4, text_learning_rate=1e-4, warmup_steps=100,
        from_scratch=True, max_gradient_norm=1.0, precision="auto",
        loss=LossWeights(patch=4.0, presence=1.0),
    )  # fmt: skip
    masks = replace(
        phrases, stage="ssp", output_dir=folder / "ssp",
        weights=(*phrases.weights, folder / "rec" / WEIGHTS_NAME), from_scratch=False, steps=6000,
        learning_rate=8e-4, final_learning_rate=1e-5, decoder_learning_rate=3e-4,
        target_size=128, click_fraction=0.2, seed=1,
        loss=LossWeights(iou_prediction=1.0, patch=4.0, presence=1.0),
    )  # fmt: skip
    return clip, sam, phrases, masks


def further_stage(folder: Path) -> TrainConfig:
    """Another run of phrases to masks, on the packaged weights."""
    *_, masks = demo_stages(folder)
    return replace(
        masks, output_dir=folder / "further", weights=(),
        data=f"{FURTHER_PHRASES}&seed=91", replay=f"{FURTHER_PHRASES}&nouns=core&seed=92",
        replay_fraction=0.6, steps=2800, window=1600, click_fraction=0.25, seed=91,
        learning_rate=6e-4, decoder_learning_rate=2.5e-4, text_learning_rate=1.2e-4, warmup_steps=60,
    )  # fmt: skip


def train_demo(folder: Path, progress: Progress | None = None) -> Path:
    """Runs the stages in sequence, each resuming from its last checkpoint, and writes the bundle.

    Args:
        folder: Output folder of the stages.
        progress: Returns a callback for the steps of a stage.
    """
    return _train([], demo_stages(folder), folder / BUNDLE_NAME, progress)


def train_further(folder: Path, progress: Progress | None = None) -> Path:
    """Like `train_demo`, with `further_stage` only; everything else is from the packaged weights."""
    return _train([WEIGHTS_FOLDER / BUNDLE_NAME], [further_stage(folder)], folder / BUNDLE_NAME, progress)


def _train(
    before: Sequence[Path], configs: Sequence[TrainConfig], bundle: Path, progress: Progress | None
) -> Path:
    results = [train(config, progress(config) if progress else None) for config in configs]
    write_bundle(PRESET, [*before, *(result.weights for result in results)], bundle)
    return bundle
