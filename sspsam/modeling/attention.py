"""Attention with the weights of `torch.nn.MultiheadAttention`, on batch-first tensors without transposing.

PyTorch's own forward moves the sequence axis to the front, which makes the matrix products strided and slow.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn


def attend(
    attention: nn.MultiheadAttention,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Multi-head attention: (B, N, C).

    Args:
        attention: Batch-first, with one width for queries, keys and values.
        queries: (B, N, C), unprojected, as are the others.
        keys: (B, L, C); if identical to the queries, both are projected together.
        values: (B, L, C).
        mask: (N, L), (B, 1, 1, L) or anything broadcastable to (B, heads, N, L): True where attention is
            allowed, or a number to add.
    """
    if queries is keys is values:
        query, key, value = project(attention, queries, 0, 3).chunk(3, dim=-1)
    elif queries is keys:
        query, key = project(attention, queries, 0, 2).chunk(2, dim=-1)
        value = project(attention, values, 2, 3)
    else:
        query, key, value = (
            project(attention, rows, number, number + 1)
            for number, rows in enumerate((queries, keys, values))
        )
    return attend_projected(attention, query, key, value, mask)


def project(attention: nn.MultiheadAttention, rows: Tensor, first: int, last: int) -> Tensor:
    """(B, N, C) rows as queries (0), keys (1), values (2), from `first` up to but excluding `last`."""
    part = slice(first * attention.embed_dim, last * attention.embed_dim)
    bias = attention.in_proj_bias
    return F.linear(rows, attention.in_proj_weight[part], None if bias is None else bias[part])


def attend_projected(
    attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Like `attend`, on projected inputs."""
    query, key, value = (
        rows.view(*rows.shape[:2], attention.num_heads, -1).transpose(1, 2) for rows in (query, key, value)
    )  # (B, heads, N, d)
    dropout = attention.dropout if attention.training else 0.0
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return cast(Tensor, attention.out_proj(attended.transpose(1, 2).flatten(2)))
