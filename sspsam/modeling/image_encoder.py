"""SAM's image encoder with segment_anything's modules and numbers, and fused, sliced attention.

Stock attention materialises the scores of all pairs of cells three times: gigabytes at 1024 px. Here they are
never materialised; the decomposed relative positions of a slice of queries are, within a limit.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sspsam.modeling.sam_layers import (
    Block,
    ImageEncoderViT,
    get_rel_pos,
    window_partition,
    window_unpartition,
)
from sspsam.modeling.sam_layers import EncoderAttention as Attention

SLICE_BYTES = 32 * 2**20
"""Limit of the relative positions materialised at once."""


class ImageEncoder(ImageEncoderViT):  # type: ignore[misc]  # segment_anything is not typed
    """Stock modules and tensors: (B, 3, S, S), SAM's preprocessing, to (B, C, S / 16, S / 16)."""

    def forward(self, images: Tensor) -> Tensor:
        """Encodes preprocessed images."""
        cells = self.patch_embed(images.contiguous(memory_format=torch.channels_last))  # (B, h, w, width)
        cells = cells + self.pos_embed
        for block in self.blocks:
            cells = run_block(block, cells)
        return cast(Tensor, self.neck(cells.permute(0, 3, 1, 2))).contiguous()


def run_block(block: Block, cells: Tensor) -> Tensor:
    """Runs a stock transformer block on (B, h, w, width) cells, windowed where configured."""
    grid_hw, side = cells.shape[1:3], block.window_size
    normed = block.norm1(cells)
    if side > 0:
        windows, padded_hw = window_partition(normed, side)
        attended = window_unpartition(attend(block.attn, windows), side, padded_hw, grid_hw)
    else:
        attended = attend(block.attn, normed)
    cells = cells + attended
    return cells + cast(Tensor, block.mlp(block.norm2(cells)))


def attend(attention: Attention, cells: Tensor) -> Tensor:
    """Self-attention over (B, h, w, width) cells with decomposed relative positions.

    Source: MViTv2 (arXiv 2112.01526), sec. 4.1; segment_anything's `Attention`, whose weights are used.
    """
    batch, height, width, channels = cells.shape
    heads, length = attention.num_heads, height * width
    qkv = attention.qkv(cells).view(batch, length, 3, heads, channels // heads)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, L, d) each
    by_row, by_column = _relative_positions(attention, query, (height, width))
    rows = max(1, SLICE_BYTES // (batch * heads * length * query.element_size()))
    slices = []
    for start in range(0, length, rows):
        part = slice(start, start + rows)
        positions = by_row[:, :, part, :, None] + by_column[:, :, part, None, :]
        attended = F.scaled_dot_product_attention(
            query[:, :, part], key, value, attn_mask=positions.flatten(3), scale=attention.scale
        )
        slices.append(attended.transpose(1, 2))  # (B, rows, heads, d)
    attended = torch.cat(slices, dim=1).reshape(batch, height, width, channels)
    return cast(Tensor, attention.proj(attended))


def _relative_positions(
    attention: Attention, query: Tensor, grid_hw: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Relative-position terms of each query for every row and column: (B, heads, L, h), (B, heads, L, w)."""
    batch, heads, length, _ = query.shape
    height, width = grid_hw
    rows = get_rel_pos(height, height, attention.rel_pos_h).to(query.dtype)  # (h, h, d)
    columns = get_rel_pos(width, width, attention.rel_pos_w).to(query.dtype)  # (w, w, d)
    grid = query.reshape(batch, heads, height, width, -1)
    by_row = torch.einsum("bnhwd,hkd->bnhwk", grid, rows)
    by_column = torch.einsum("bnhwd,wkd->bnhwk", grid, columns)
    return by_row.reshape(batch, heads, length, height), by_column.reshape(batch, heads, length, width)
