"""SAM's two-way transformer with segment_anything's modules and numbers, with a reusable image part.

In the first block the image has not been changed by prompts yet: its projections there are the same for every
prompt, and can be cached with the image while the decoder's weights stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sspsam.modeling.sam_layers import DecoderAttention as Attention
from sspsam.modeling.sam_layers import TwoWayAttentionBlock, TwoWayTransformer


class ProjectedImage(NamedTuple):
    """Features that depend on the image and the decoder's weights alone; B images of h*w = L cells."""

    cells: Tensor
    """(B, L, C)."""
    positions: Tensor
    """(1, L, C)."""
    keys: Tensor
    """(B, heads, L, d), keys for the prompts of the first block."""
    values: Tensor
    """(B, heads, L, d), values for the prompts of the first block."""
    queries: Tensor
    """(B, heads, L, d), the cells' queries to the prompts of the first block."""
    grid_hw: tuple[int, int]

    @classmethod
    def stack(cls, images: Sequence[ProjectedImage]) -> ProjectedImage:
        """Images of one size as a batch; a repeated one is expanded without copying."""
        first = images[0]
        if all(image is first for image in images):
            return first
        cells, _, keys, values, queries, _ = zip(*images, strict=True)
        return cls(
            torch.cat(cells),
            first.positions,
            torch.cat(keys),
            torch.cat(values),
            torch.cat(queries),
            first.grid_hw,
        )

    @property
    def nbytes(self) -> int:
        """Bytes that it owns."""
        return sum(tensor.nbytes for tensor in (self.cells, self.keys, self.values, self.queries))


def project_image(transformer: TwoWayTransformer, source: Tensor, positions: Tensor) -> ProjectedImage:
    """Prepares images.

    Args:
        transformer: stock.
        source: (B, C, h, w), image and dense prompt embeddings together.
        positions: (1, C, h, w).
    """
    grid_hw = (source.shape[-2], source.shape[-1])
    cells, position = (grid.flatten(2).transpose(1, 2).contiguous() for grid in (source, positions))
    projected = _project_cells(transformer.layers[0], cells, cells + position)
    return ProjectedImage(cells, position, *projected, grid_hw)


def attend_both_ways(
    transformer: TwoWayTransformer, image: ProjectedImage, tokens: Tensor, answers: int
) -> tuple[Tensor, Tensor]:
    """Attends between prompts and image in both directions.

    Args:
        transformer: stock.
        image: of as many images as rows of tokens, or one for all.
        tokens: (B, N, C).
        answers: number of leading tokens needed afterwards; the last attention computes only these.

    Returns:
        the first tokens (B, answers, C), and the cells (B, L, C).
    """
    positions, cells = tokens, image.cells
    for number, block in enumerate(transformer.layers):
        # Before the first block the cells depend on the image alone, so their projections are cached; each
        # block then changes the cells by the prompts.
        if number == 0:
            keys, values, queries = image.keys, image.values, image.queries
        else:
            keys, values, queries = _project_cells(block, cells, cells + image.positions)
        tokens = _update_tokens(block, tokens, positions, keys, values)
        cells = _update_cells(block, cells, queries, tokens, positions)
    last = transformer.final_attn_token_to_image
    # Only the IoU token and the mask token are read afterwards; further rows would be computed for nothing.
    first = tokens[:, :answers]
    read = _attend(
        last,
        _heads(last, last.q_proj(first + positions[:, :answers])),
        _heads(last, last.k_proj(cells + image.positions)),
        _heads(last, last.v_proj(cells)),
    )
    return cast(Tensor, transformer.norm_final_attn(first + read)), cells


def _project_cells(
    block: TwoWayAttentionBlock, cells: Tensor, placed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values for the prompts, and the cells' own queries to them: (B, heads, L, d) each."""
    to_image, from_image = block.cross_attn_token_to_image, block.cross_attn_image_to_token
    return (
        _heads(to_image, to_image.k_proj(placed)),
        _heads(to_image, to_image.v_proj(cells)),
        _heads(from_image, from_image.q_proj(placed)),
    )


def _update_tokens(
    block: TwoWayAttentionBlock, tokens: Tensor, positions: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Prompt self-attention, then attention to the image: (B, N, C)."""
    own, to_image = block.self_attn, block.cross_attn_token_to_image
    placed = tokens if block.skip_first_layer_pe else tokens + positions
    read = _attend(
        own,
        _heads(own, own.q_proj(placed)),
        _heads(own, own.k_proj(placed)),
        _heads(own, own.v_proj(tokens)),
    )
    # SAM's first block replaces the prompts in its self-attention instead of adding to them.
    tokens = block.norm1(read if block.skip_first_layer_pe else tokens + read)
    queries = _heads(to_image, to_image.q_proj(tokens + positions))
    tokens = block.norm2(tokens + _attend(to_image, queries, keys, values))
    return cast(Tensor, block.norm3(tokens + block.mlp(tokens)))


def _update_cells(
    block: TwoWayAttentionBlock, cells: Tensor, queries: Tensor, tokens: Tensor, positions: Tensor
) -> Tensor:
    """Attention from the image to the prompts: (B, L, C)."""
    from_image = block.cross_attn_image_to_token
    keys = _heads(from_image, from_image.k_proj(tokens + positions))
    values = _heads(from_image, from_image.v_proj(tokens))
    return cast(Tensor, block.norm4(cells + _attend(from_image, queries, keys, values)))


def _attend(attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of (B, heads, N, d) queries, projected back: (B, N, C); a batch of one is broadcast."""
    # Several phrases about one image share its keys and values: expand copies nothing.
    batch = max(len(queries), len(keys))
    queries, keys, values = (rows.expand(batch, -1, -1, -1) for rows in (queries, keys, values))
    attended = F.scaled_dot_product_attention(queries, keys, values)
    return cast(Tensor, attention.out_proj(attended.transpose(1, 2).flatten(2)))


def _heads(attention: Attention, rows: Tensor) -> Tensor:
    """(B, N, heads * d) to (B, heads, N, d)."""
    return rows.view(*rows.shape[:2], attention.num_heads, -1).transpose(1, 2)
