"""The paper's training: semantic-spatial prompts and mask decoder, on frozen CLIP and image encoder."""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.config import TrainConfig
from finetune.data.dataset import Dataset
from finetune.examples import Batch, ExampleStream, concatenate
from finetune.initialise import initialise
from finetune.losses import Criterion
from sspsam.model import EncodedPhrase
from sspsam.predictor import Predictor
from sspsam.prompts import Prompts

PROBED_BATCHES = 8
"""Batches that a fresh prompt encoder is initialised from."""


class _Masks(NamedTuple):
    logits: Tensor | None = None
    iou_predictions: Tensor | None = None


_NO_MASKS = _Masks()


class SSPStage:
    """Everything but CLIP and SAM's image and prompt encoders learns."""

    def __init__(
        self, predictor: Predictor, config: TrainConfig, data: Dataset, replay: Dataset | None = None
    ) -> None:
        self.model = predictor.model
        self.device = predictor.device
        self.config = config
        self.criterion = Criterion(config.loss)
        dim = self.model.sam.prompt_encoder.embed_dim
        self.localiser = nn.Linear(dim, 1).to(self.device) if config.loss.patch > 0 else None
        self._module = nn.ModuleList([self.model] if self.localiser is None else [self.model, self.localiser])
        from_replay = round(config.batch_size * config.replay_fraction) if replay is not None else 0
        self.stream = self._stream(data, predictor, config.batch_size - from_replay)
        self.replay = self._stream(replay, predictor, from_replay) if replay is not None else None

        if config.from_scratch:
            probed = reduce(concatenate, (self.batch(step) for step in range(PROBED_BATCHES)))
            initialise(self.model, probed, self._encode)

    @property
    def module(self) -> nn.Module:
        """The model, frozen parts and all, and what is thrown away after training."""
        return self._module

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The mask decoder learns more slowly than the prompts."""
        decoder = list(self.model.sam.mask_decoder.parameters())
        chosen = {id(parameter) for parameter in decoder}
        prompts = [p for p in self._module.parameters() if p.requires_grad and id(p) not in chosen]
        return [{"params": prompts}, {"params": decoder, "lr": self.config.decoder_learning_rate}]

    def loss(self, step: int) -> dict[str, Tensor]:
        """Mask and box terms of the step's batch; without the mask's in the first `box_only_steps`."""
        self._freeze(step)
        batch = self.batch(step)
        prompts = self.model.make_prompts(batch.patch_features, self._encode(batch))
        masks = self._decode(batch, prompts) if step >= self.config.box_only_steps else _NO_MASKS
        terms: dict[str, Tensor] = self.criterion(
            masks.logits, self.model.box_head(prompts.box_token), batch.masks, batch.boxes, batch.has_target,
            iou_predictions=masks.iou_predictions, sample_ids=batch.sample_ids,
            patch_logits=None if self.localiser is None else self.localiser(prompts.fused_patches)[..., 0],
            patch_coverage=batch.patch_coverage,
        )  # fmt: skip
        return terms

    def _decode(self, batch: Batch, prompts: Prompts) -> _Masks:
        output = self.model.decode(batch.image_embeddings, prompts)
        size = batch.masks.shape[-2:]
        logits = F.interpolate(output.mask_logits.float(), size, mode="bilinear", align_corners=False)
        return _Masks(logits, output.iou_predictions)

    def batch(self, step: int) -> Batch:
        """The step's batch: new data and replay. Frozen features are computed as they are when serving."""
        with torch.autocast(self.device.type, enabled=False):
            batch = self.stream.batch(step)
            return batch if self.replay is None else concatenate(batch, self.replay.batch(step))

    def _stream(self, data: Dataset, predictor: Predictor, batch_size: int) -> ExampleStream:
        config = self.config
        return ExampleStream(
            data, predictor, max(1, batch_size), config.window, config.target_size, config.seed
        )

    def _freeze(self, step: int) -> None:
        self.model.clip.eval()
        learns = step >= self.config.decoder_frozen_steps
        self.model.sam.mask_decoder.requires_grad_(learns)

    def _encode(self, batch: Batch) -> EncodedPhrase:
        return self.model.adapt_phrase(batch.text, batch.tokens)
