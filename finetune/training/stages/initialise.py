"""Data-dependent initialisation of a small prompt encoder trained from scratch.

A randomly initialised fusion transformer takes very long to learn what to attend to and how to encode it for
SAM's decoder. Prior knowledge is built in: SAM's own encoding of positions and foreground points, and a
linear probe that separates target patches from others. Training may change all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from finetune.training.batches.examples import Batch
from sspsam import SSPSAM
from sspsam.modeling.model import EncodedPhrase
from sspsam.modeling.prompts import FusionLayer

BIAS_STD = 0.5
"""Scale of initial biases, relative to a signal of unit variance."""
TOKEN_STD = 0.02
COVERED = 0.4
"""A patch counts as target if it is covered by at least this fraction."""
RIDGE = 1e-2
"""Ridge of the probe, relative to the number of patches."""
PROBE_LOGIT = 8.0
"""Additional attention logit of a target patch."""
OTHER_LOGITS = 0.3
"""Scale of all other, random attention."""
LATER_LAYERS = 0.1
"""Initial fraction contributed by layers after the first."""


@torch.no_grad()
def initialise(model: SSPSAM, batch: Batch, encode: Callable[[Batch], EncodedPhrase]) -> None:
    """Initialises the prompt encoder.

    Args:
        model: with a pre-trained CLIP and SAM, and random adapters.
        batch: some training data.
        encode: runs the linguistic adapter on a batch.
    """
    unit_variance(model, lambda: model.fuse(batch.patch_features, encode(batch)))
    prompts_as_points(model)
    attend_to_target(model, model.fuse(batch.patch_features, encode(batch)), batch)


def unit_variance(model: SSPSAM, forward: Callable[[], Tensor]) -> None:
    """Scales the adapters so that every layer outputs a signal of unit variance.

    Token-axis normalisation and the verification score make their inputs small: with the usual
    initialisation, biases would dominate the differences between patches.

    Source: *All you need is a good init* (arXiv 1511.06422).
    """
    adapters = model.linguistic_adapter, model.visual_adapter
    for layer in [*adapters[0].projections(), *adapters[1].projections(), model.fusion]:
        layer.bias.zero_()  # constants must not count as signal
        layer.weight /= _output_of(layer, forward).std()
        # Without biases the projection would be homogeneous, and LayerNorm would undo the similarity map.
        layer.bias.normal_(std=BIAS_STD)


def prompts_as_points(model: SSPSAM) -> None:
    """Makes prompts start as foreground points at their attended positions.

    Patches get SAM's position encoding, prompts its label of a foreground point, and the value path of every
    fusion layer starts as the identity.
    """
    generator, encoder = model.prompt_generator, model.sam.prompt_encoder
    grid = model.preset.clip.grid_size
    places = encoder.pe_layer((grid, grid)).flatten(1).T  # (G*G, C)
    position = generator.position.weight
    position[: -len(places)].normal_(std=TOKEN_STD)
    position[-len(places) :] = places
    foreground = encoder.point_embeddings[1].weight
    generator.prompt_tokens.weight.normal_(std=TOKEN_STD).add_(foreground)
    generator.box_token.weight.normal_(std=TOKEN_STD)
    for number, layer in enumerate(generator.layers):
        attention = cast(FusionLayer, layer).self_attn
        width, share = attention.embed_dim, LATER_LAYERS if number else 1.0
        attention.in_proj_weight[-width:] = torch.eye(width)
        attention.out_proj.weight.copy_(share * torch.eye(width))
        cast(FusionLayer, layer).linear2.weight.mul_(LATER_LAYERS)


def attend_to_target(model: SSPSAM, multimodal_patches: Tensor, batch: Batch) -> None:
    """Makes the first layer attend to the patches selected by a linear probe.

    Args:
        model: with SAM's positions in place.
        multimodal_patches: (B, G*G, C) of the batch.
        batch: with ground-truth masks.
    """
    generator = model.prompt_generator
    patches = multimodal_patches.shape[1]
    position = generator.position.weight[-patches:]
    keys = (multimodal_patches + (1 + generator.placed_patches) * position).flatten(0, 1)  # (B*G*G, C)
    probe = fit_probe(keys, _covered(batch.patch_coverage).flatten())
    attention = cast(FusionLayer, generator.layers[0]).self_attn
    width, head = attention.embed_dim, attention.head_dim
    attention.in_proj_weight[: 2 * width] *= OTHER_LOGITS
    for first in range(0, width, head):  # one dimension of every head carries the probe
        attention.in_proj_weight[first] = 0
        attention.in_proj_bias[first] = head**0.5
        attention.in_proj_weight[width + first] = PROBE_LOGIT * probe


def fit_probe(features: Tensor, target: Tensor) -> Tensor:
    """Ridge regression of a 0/1 target on (N, C) features; (C,) weights that separate the classes by 1."""
    balanced = torch.where(target > 0, 0.5 / target.sum(), 0.5 / (1 - target).sum()) * len(target)
    mean = (features * balanced[:, None]).mean(0)
    centred = features - mean
    gram = centred.T @ (centred * balanced[:, None]) + RIDGE * len(target) * torch.eye(features.shape[1])
    probe: Tensor = torch.linalg.solve(gram, centred.T @ ((target - 0.5) * balanced))
    answers = features @ probe
    distance: Tensor = answers[target > 0].mean() - answers[target == 0].mean()
    return probe / distance


def _covered(share: Tensor) -> Tensor:
    """(B, G*G) fractions of patches, thresholded to 0 and 1."""
    peak = share.amax(dim=1, keepdim=True).clamp(min=1e-6)
    return (share >= COVERED * peak).float()


def _output_of(layer: nn.Module, forward: Callable[[], Tensor]) -> Tensor:
    """Captures a layer's output in a forward pass."""
    seen: list[Tensor] = []

    def note(module: nn.Module, arguments: object, output: Tensor) -> None:
        seen.append(output)

    with layer.register_forward_hook(note):
        forward()
    return seen[0]
