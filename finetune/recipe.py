"""How the weights that ship in the package are made, from nothing."""

from __future__ import annotations

from pathlib import Path

from finetune.config import TrainConfig
from finetune.engine import ProgressFn
from finetune.losses import LossWeights
from finetune.train import WEIGHTS_NAME, train, write_bundle

PRESET = "ssp-sam-demo"
BUNDLE_NAME = f"{PRESET}.safetensors"
SSP_DATA = (
    "stickers/train?phrases=16&count=100000"
    "&families=noun,size,place,place,ordinal,ordinal,relation,relation,colour,several,none"
)
"""Scenes of all nouns; the harder families more often."""


def demo_stages(folder: Path) -> tuple[TrainConfig, TrainConfig, TrainConfig]:
    """The three stages: recognition, segmentation from points and boxes, then phrases to masks.

    The first two do not depend on each other.
    """
    clip = TrainConfig(
        preset=PRESET, stage="clip", output_dir=folder / "clip", data="stickers/train",
        steps=2100, batch_size=128, learning_rate=2e-3, final_learning_rate=1e-5, warmup_steps=100,
        weight_decay=0.05, max_gradient_norm=1.0, precision="bfloat16",
    )  # fmt: skip
    sam = TrainConfig(
        preset=PRESET, stage="sam", output_dir=folder / "sam", data="stickers/train",
        steps=3000, batch_size=8, learning_rate=1e-3, final_learning_rate=1e-5, warmup_steps=50,
        weight_decay=0.01, max_gradient_norm=1.0, precision="bfloat16",
    )  # fmt: skip
    ssp = TrainConfig(
        preset=PRESET, stage="ssp", output_dir=folder / "ssp", data=SSP_DATA,
        weights=(folder / "clip" / WEIGHTS_NAME, folder / "sam" / WEIGHTS_NAME),
        steps=4000, batch_size=32, window=6400, target_size=128, box_only_steps=1000,
        learning_rate=6e-4, decoder_learning_rate=2e-4, final_learning_rate=1e-5, warmup_steps=100,
        from_scratch=True, max_gradient_norm=1.0, loss=LossWeights(iou_prediction=1.0, patch=4.0),
        precision="bfloat16",
    )  # fmt: skip
    return clip, sam, ssp


def train_demo(folder: Path, progress: ProgressFn | None = None) -> Path:
    """Runs the stages one after the other, each going on from its last checkpoint, and writes the bundle."""
    configs = demo_stages(folder)
    results = [train(config, progress) for config in configs]
    bundle = folder / BUNDLE_NAME
    write_bundle(PRESET, [result.weights for result in results], bundle)
    return bundle
