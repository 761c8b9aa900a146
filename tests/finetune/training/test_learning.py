"""A small model overfits a few scenes: adapters, prompts, decoder, losses and metrics work together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.data.stickers.dataset import StickerDataset
from finetune.evaluation.evaluate import evaluate
from finetune.training.config import TrainConfig
from finetune.training.loop import TrainingLoop
from finetune.training.stages.ssp import SSPStage
from sspsam import Predictor
from sspsam.modeling.model import build_model
from sspsam.modeling.sam import build_image_encoder
from sspsam.presets import (
    IMAGE_ENCODERS,
    PRESETS,
    CLIPConfig,
    DecoderConfig,
    ImageEncoderConfig,
    Preset,
    PromptConfig,
)

SMALL = Preset(
    clip=CLIPConfig(
        image_size=64, patch_size=8, width=64, layers=3, heads=2,
        embed_dim=64, text_width=64, text_layers=1, text_heads=2, surgery_blocks=2,
    ),
    image_encoder="vit_small",
    prompt=PromptConfig(adapter_dim=64, adapter_heads=2, tokens=8, layers=2, heads=2, feedforward_dim=128),
    decoder=DecoderConfig(heads=2, feedforward_dim=128),
)  # fmt: skip
"""Fine enough masks, 64 x 64, for what stickers look like; its frozen towers stay random."""
VIT_SMALL = ImageEncoderConfig(128, 64, 2, 2, (1,), window_size=4, patch_size=8, embedding_dim=64)
SCENES, SIDE = 4, 128
STEPS = 340


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_small_model_overfits_a_few_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(IMAGE_ENCODERS, "vit_small", VIT_SMALL)
    monkeypatch.setitem(PRESETS, "small", SMALL)
    torch.manual_seed(0)
    predictor = Predictor(build_model("small"), build_image_encoder("vit_small"), "small", "cpu")
    scenes = StickerDataset(
        "train", SCENES, families=["noun"], nouns=["first"], phrases_per_scene=1, size_range=(SIDE, SIDE)
    )
    config = TrainConfig(
        preset="small", output_dir=tmp_path, steps=STEPS, batch_size=SCENES, window=SCENES, target_size=SIDE,
        learning_rate=2e-3, decoder_learning_rate=2e-3, final_learning_rate=1e-5, warmup_steps=20,
        weight_decay=0.0, max_gradient_norm=1.0, device="cpu",
    )  # fmt: skip
    before = evaluate(predictor, scenes)
    TrainingLoop(SSPStage(predictor, config, scenes), config, predictor.device).run()
    predictor.model.eval()
    after = evaluate(predictor, scenes)
    assert before.overall["mIoU"] is not None
    assert after.overall["mIoU"] is not None
    assert before.overall["mIoU"] < 0.3
    assert after.overall["mIoU"] > 0.95
    assert after.overall["Pr@0.5"] == 1.0
    assert after.overall["Acc@0.5"] >= 3 / 4  # how fast boxes follow hangs on the number of threads
