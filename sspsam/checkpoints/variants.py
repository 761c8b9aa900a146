"""Models that differ in their trainable tensors alone, and share all others."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor

from sspsam.checkpoints.load import checked_trainable
from sspsam.modeling.model import SSPSAM


def variant_of(model: SSPSAM, state: Mapping[str, Tensor]) -> SSPSAM:
    """A model with other trainable tensors, which shares the frozen parts: CLIP and SAM's prompt encoder.

    Args:
        model: Is not changed, and may be in use meanwhile.
        state: As for `load_trainable`. It is copied to the model's device, so its file may be removed.

    Raises:
        CheckpointError: as `load_trainable`.
    """
    words, others = checked_trainable(model, state)
    shared = (model.clip, model.sam.prompt_encoder, model.preset, *model.parameters(), *model.buffers())
    variant = copy.deepcopy(model, {id(part): part for part in shared})
    device = model.fusion.weight.device
    own = {
        name: others[name].to(device, part.dtype, copy=True)
        for name, part in model.named_parameters()
        if name in others
    }
    variant.load_state_dict(own, strict=False, assign=True)
    variant.learned_words.replace(words, device)
    return variant
