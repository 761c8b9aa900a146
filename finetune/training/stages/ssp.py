"""The paper's training: semantic-spatial prompts and mask decoder, on frozen CLIP and image encoder."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.data.sample import Dataset
from finetune.training.batches.clicks import correcting_clicks
from finetune.training.batches.examples import Batch, ExampleStream, concatenate, take
from finetune.training.batches.streaming import SampleStream
from finetune.training.config import ConfigError, TrainConfig
from finetune.training.losses import Criterion
from finetune.training.ranks import Ranks
from finetune.training.stages.initialise import initialise
from sspsam import Predictor
from sspsam.modeling.model import EncodedPhrase
from sspsam.modeling.prompts import Prompts
from sspsam.phrases import tokenize

MAX_CLICKS = 2
"""Clicks per answer."""
PROBED_BATCHES = 8
"""Batches for initialising a new prompt encoder."""


class SSPStage:
    """Trains everything but CLIP and SAM's image and prompt encoders; of CLIP, words or the text tower."""

    def __init__(
        self,
        predictor: Predictor,
        config: TrainConfig,
        data: Dataset,
        replay: Dataset | None = None,
        processes: Ranks | None = None,
        validation: Dataset | None = None,
    ) -> None:
        self.model = predictor.model
        self.device = predictor.device
        self.config = config
        self.processes = processes or Ranks()
        self.criterion = Criterion(config.loss)
        dim = self.model.sam.prompt_encoder.embed_dim
        self.localiser = nn.Linear(dim, 1).to(self.device) if config.loss.patch > 0 else None
        self._module = nn.ModuleList([self.model] if self.localiser is None else [self.model, self.localiser])
        from_replay = 0 if replay is None else _replay_samples(config)
        self.stream = self._stream(data, predictor, config.batch_size - from_replay)
        self.replay = self._stream(replay, predictor, from_replay) if replay is not None else None
        size = self.stream.batch_size + (0 if self.replay is None else self.replay.batch_size)
        if size < self.processes.count:
            raise ConfigError(f"{self.processes.count} processes cannot share batches of {size} samples")
        self.validation = None if validation is None else self._windows(validation, predictor, 1)
        self._share: tuple[int, Batch, Tensor] | None = None
        if config.word_learning_rate > 0:
            self.model.learned_words.add(self._new_words(), self.device)
        for parameter in self._text_tower().values():
            parameter.requires_grad_(True)

        if config.from_scratch:
            probed = reduce(concatenate, (self.batch(step) for step in range(PROBED_BATCHES)))
            initialise(self.model, probed, self._encode)

    @property
    def module(self) -> nn.Module:
        """The model including frozen parts, and auxiliary heads."""
        return self._module

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """This process's samples of the last step."""
        return () if self._share is None else self._share[1].sample_ids

    def samples(self, step: int) -> int:
        """Number of this process's samples of a step."""
        return len(self._load(step)[0].sample_ids)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The prompt encoder; words and text, without weight decay; last the decoder, at a lower rate."""
        decoder = list(self.model.sam.mask_decoder.parameters())
        words = list(self.model.learned_words.parameters())
        text = list(self._text_tower().values())
        chosen = {id(parameter) for parameter in (*decoder, *words, *text)}
        prompts = [p for p in self._module.parameters() if p.requires_grad and id(p) not in chosen]
        groups: list[dict[str, Any]] = [{"params": prompts}]
        if words and self.config.word_learning_rate > 0:
            groups.append({"params": words, "lr": self.config.word_learning_rate, "weight_decay": 0.0})
        if text:
            groups.append({"params": text, "lr": self.config.text_learning_rate, "weight_decay": 0.0})
        return [*groups, {"params": decoder, "lr": self.config.decoder_learning_rate}]

    def text_state(self) -> dict[str, Tensor]:
        """A copy of the text tower on the CPU, by the model's names, if it is trained."""
        return {f"clip.{name}": p.detach().cpu().clone() for name, p in self._text_tower().items()}

    def loss(self, step: int, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        """Mask and box terms of one part of this process's share of the step's batch.

        Means are over the whole batch: averaged over all parts and processes they equal those of the batch at
        once.
        """
        self._freeze(step)
        share, totals = self._load(step)
        rows = Ranks(part, parts).share(len(share.sample_ids))
        return self._terms(take(share, rows), totals / parts)

    def validate(self, rows: int) -> dict[str, Tensor]:
        """Validation terms, means over the whole set; every process evaluates all of it.

        Args:
            rows: Maximum number of samples per forward pass.
        """
        assert self.validation is not None
        self._module.eval()
        with torch.autocast(self.device.type, enabled=False):
            totals = self.validation.counts().to(self.device)
        sums: dict[str, Tensor] = {}
        for batch in self.validation.in_order(rows):
            for name, term in self._terms(batch, totals).items():
                sums[name] = sums.get(name, torch.zeros_like(term)) + term
        return sums

    def batch(self, step: int) -> Batch:
        """The step's batch: new data and replay. Frozen features are computed as in serving.

        The whole batch for windows; this process's share for streams.
        """
        with torch.autocast(self.device.type, enabled=False):
            batch = self.stream.batch(step)
            return batch if self.replay is None else concatenate(batch, self.replay.batch(step))

    def _terms(self, batch: Batch, totals: Tensor) -> dict[str, Tensor]:
        prompts = self.make_prompts(batch)
        mask_logits, iou_predictions = self._decode(batch, prompts.prompt_tokens)
        self._correct(batch, prompts.prompt_tokens, mask_logits, iou_predictions)
        terms: dict[str, Tensor] = self.criterion(
            mask_logits, self.model.predict_box(prompts), batch.masks, batch.boxes, batch.has_target,
            iou_predictions=iou_predictions, sample_ids=batch.sample_ids,
            patch_logits=self.patch_logits(prompts), patch_coverage=batch.patch_coverage, totals=totals,
            presence_logits=self.model.presence_logits(prompts), has_mask=batch.has_mask,
        )  # fmt: skip
        return terms

    def _decode(self, batch: Batch, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """Mask logits (B, 1, T, T) and predicted IoU (B,) of (B, N, C) prompts."""
        logits, iou_predictions = self.model.sam(batch.image_embeddings, sparse)
        size = batch.masks.shape[-2:]
        return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False), iou_predictions

    def _correct(self, batch: Batch, sparse: Tensor, mask_logits: Tensor, iou_predictions: Tensor) -> None:
        """Replaces some answers by their corrections with simulated clicks."""
        many = round(self.config.click_fraction * len(sparse))
        if many == 0:
            return
        first, count = (
            int(torch.randint(len(sparse) - many + 1, ())),
            int(torch.randint(1, MAX_CLICKS + 1, ())),
        )
        rows, part = range(first, first + many), slice(first, first + many)  # the batch is shuffled
        encoder = self.model.sam.prompt_encoder
        clicks = correcting_clicks(
            mask_logits[part].detach(), batch.masks[part], count, encoder.input_image_size[0]
        )
        points, _ = encoder(points=clicks, boxes=None, masks=None)
        prompts = torch.cat([sparse[part], points.to(sparse.dtype)], dim=1)
        mask_logits[part], iou_predictions[part] = self._decode(take(batch, rows), prompts)

    def make_prompts(self, batch: Batch) -> Prompts:
        """The model's prompts, with the fused patches if they are trained."""
        looked_at = self.localiser is not None
        return self.model.make_prompts(batch.patch_features, self._encode(batch), with_patches=looked_at)

    def patch_logits(self, prompts: Prompts) -> Tensor | None:
        """(B, G*G): whether the fused patches show the target; None if not trained."""
        return None if self.localiser is None else self.localiser(prompts.fused_patches)[..., 0]

    def _load(self, step: int) -> tuple[Batch, Tensor]:
        """This process's share of a step's batch, and the totals over all processes."""
        if self._share is None or self._share[0] != step:
            share = self.batch(step)
            if isinstance(self.stream, ExampleStream):
                share = take(share, self.processes.share(len(share.sample_ids)))
            counts = torch.stack([torch.ones_like(share.has_target).sum(), share.has_target.sum()]).float()
            self._share = step, share, self.processes.mean(counts)
        return self._share[1:]

    def _new_words(self) -> set[int]:
        """Tokens in the data that do not occur in the replay."""
        assert isinstance(self.stream, ExampleStream)
        assert isinstance(self.replay, ExampleStream)
        said, known = (set(tokenize(s.phrases()).flatten().tolist()) for s in (self.stream, self.replay))
        return said - known

    def _stream(self, data: Dataset, predictor: Predictor, batch_size: int) -> ExampleStream | SampleStream:
        config = self.config
        if config.stream:
            return SampleStream(data, predictor, config, batch_size, self.processes)
        return self._windows(data, predictor, batch_size)

    def _windows(self, data: Dataset, predictor: Predictor, batch_size: int) -> ExampleStream:
        config = self.config
        return ExampleStream(data, predictor, batch_size, config.window, config.target_size, config.seed)

    def _freeze(self, step: int) -> None:
        self.model.clip.eval()
        learns = step >= self.config.decoder_frozen_steps
        self.model.sam.mask_decoder.requires_grad_(learns)

    def _text_tower(self) -> dict[str, nn.Parameter]:
        """Trained parameters of CLIP, by name."""
        return self.model.clip.text_tower() if self.config.text_learning_rate > 0 else {}

    def _encode(self, batch: Batch) -> EncodedPhrase:
        """The batch's phrases; re-encoded if the text tower or words of it are trained."""
        words_learn = self.config.word_learning_rate > 0 and self.model.learned_words.offsets is not None
        learns = words_learn or self.config.text_learning_rate > 0
        text = self.model.encode_text(batch.tokens) if learns else batch.text
        return self.model.adapt_phrase(text, batch.tokens)


def _replay_samples(config: TrainConfig) -> int:
    """Samples of a batch from the replay: at least one, and not all."""
    return min(max(1, round(config.batch_size * config.replay_fraction)), config.batch_size - 1)
