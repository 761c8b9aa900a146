"""The paper's first stage: localisation by boxes (and patches) alone, without SAM."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from finetune.training.batches.examples import Batch
from finetune.training.stages.ssp import SSPStage


class RECStage(SSPStage):
    """Referring expression comprehension: trains the adapters, the prompt generator and the box head."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything trainable but the mask decoder."""
        return super().parameter_groups()[:-1]

    def _terms(self, batch: Batch, totals: Tensor) -> dict[str, Tensor]:
        prompts = self.make_prompts(batch)
        terms: dict[str, Tensor] = self.criterion(
            None, self.model.predict_box(prompts), None, batch.boxes, batch.has_target,
            sample_ids=batch.sample_ids, totals=totals, patch_logits=self.patch_logits(prompts),
            patch_coverage=batch.patch_coverage, presence_logits=self.model.presence_logits(prompts),
            has_mask=batch.has_mask,
        )  # fmt: skip
        return terms

    def _freeze(self, step: int) -> None:
        self.model.clip.eval()
        self.model.sam.requires_grad_(False)
