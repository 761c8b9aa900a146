"""MobileSAM's image encoder: a TinyViT distilled from SAM's ViT-H.

Sources: *Faster Segment Anything* (arXiv 2306.14289); *TinyViT* (arXiv 2207.10666). Module names are those of
the published `mobile_sam.pt`. Maps are channels-last in memory throughout: convolutions take them as
(B, C, H, W), attention as (B, H, W, C), without copies between them.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sspsam.presets import TinyViTConfig

_STEM_WIDTH = 32
_CONV_EXPANSION = 4
_MLP_RATIO = 4


class ConvNorm(nn.Module):
    """A convolution without bias, then BatchNorm; fused into one convolution in evaluation mode."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.c = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        conv, norm = self.c, self.bn
        if self.training:
            return cast(Tensor, norm(conv(features)))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        weight = conv.weight * scale.view(-1, 1, 1, 1)
        bias = norm.bias - norm.running_mean * scale
        return F.conv2d(features, weight, bias, conv.stride, conv.padding, groups=conv.groups)


class PatchEmbedding(nn.Module):
    """Two strided convolutions: (B, 3, S, S) to (B, C, S / 4, S / 4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            ConvNorm(3, _STEM_WIDTH, 3, stride=2), nn.GELU(), ConvNorm(_STEM_WIDTH, width, 3, stride=2)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Halves the resolution twice."""
        return cast(Tensor, self.seq(images))


class ConvBlock(nn.Module):
    """An inverted bottleneck (MBConv) with a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = _CONV_EXPANSION * width
        self.conv1 = ConvNorm(width, inner)
        self.conv2 = ConvNorm(inner, inner, 3, groups=inner)
        self.conv3 = ConvNorm(inner, width)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        inner = F.gelu(self.conv2(F.gelu(self.conv1(features))))
        return F.gelu(features + self.conv3(inner))


class Downsample(nn.Module):
    """Transition between two stages: changes the width and, at stride 2, halves the resolution."""

    def __init__(self, width: int, out_width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(width, out_width)
        self.conv2 = ConvNorm(out_width, out_width, 3, stride, groups=out_width)
        self.conv3 = ConvNorm(out_width, out_width)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        inner = F.gelu(self.conv2(F.gelu(self.conv1(features))))
        return cast(Tensor, self.conv3(inner))


class WindowAttention(nn.Module):
    """Windowed self-attention with a learned bias per absolute offset."""

    def __init__(self, width: int, head_width: int, window: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.window = window
        self.heads = width // head_width
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(self.heads, window * window))

    def forward(self, windows: Tensor) -> Tensor:
        """(N, window * window, width) to the same shape."""
        count, length, width = windows.shape
        qkv = self.qkv(self.norm(windows)).view(count, length, self.heads, 3 * self.head_width)
        query, key, value = qkv.transpose(1, 2).split(self.head_width, dim=-1)  # (N, heads, L, d) each
        bias = self.attention_biases[:, self._offsets()].to(query.dtype)  # (heads, L, L)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None])
        return cast(Tensor, self.proj(attended.transpose(1, 2).reshape(count, length, width)))

    def _offsets(self) -> Tensor:
        """(L, L): index |dy| * window + |dx| of the offset between each pair of cells."""
        side = torch.arange(self.window, device=self.attention_biases.device)
        apart = (side[:, None] - side[None, :]).abs()  # (window, window)
        numbers = apart[:, None, :, None] * self.window + apart[None, :, None, :]
        return numbers.reshape(self.window**2, self.window**2)


class FeedForward(nn.Module):
    """LayerNorm, then two linear layers with a GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, _MLP_RATIO * width)
        self.fc2 = nn.Linear(_MLP_RATIO * width, width)

    def forward(self, cells: Tensor) -> Tensor:
        """(..., width) to the same shape."""
        return cast(Tensor, self.fc2(F.gelu(self.fc1(self.norm(cells)))))


class AttentionBlock(nn.Module):
    """Windowed attention, a depthwise convolution across window borders, a feed-forward network."""

    def __init__(self, width: int, head_width: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = WindowAttention(width, head_width, window)
        self.local_conv = ConvNorm(width, width, 3, groups=width)
        self.mlp = FeedForward(width)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        cells = features.permute(0, 2, 3, 1)  # (B, H, W, C)
        cells = cells + self._attend(cells)
        cells = self.local_conv(cells.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out: Tensor = cells + self.mlp(cells)
        return out.permute(0, 3, 1, 2)

    def _attend(self, cells: Tensor) -> Tensor:
        """Windowed attention; the right and bottom are padded with zeros."""
        batch, height, width, channels = cells.shape
        side = self.window
        rows, columns = -(-height // side), -(-width // side)
        padded = F.pad(cells, (0, 0, 0, columns * side - width, 0, rows * side - height))
        windows = padded.view(batch, rows, side, columns, side, channels).transpose(2, 3)
        attended: Tensor = self.attn(windows.reshape(-1, side * side, channels))
        attended = attended.view(batch, rows, columns, side, side, channels).transpose(2, 3)
        attended = attended.reshape(batch, rows * side, columns * side, channels)
        return attended[:, :height, :width]


class TinyViTStage(nn.Module):
    """Blocks of one width, and the transition to the next stage."""

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        for block in self.blocks:
            features = block(features)
        return features if self.downsample is None else cast(Tensor, self.downsample(features))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a (B, C, H, W) map."""

    def forward(self, features: Tensor) -> Tensor:
        """To the same shape."""
        last = features.permute(0, 2, 3, 1)
        return F.layer_norm(last, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class TinyViT(nn.Module):
    """(B, 3, S, S), SAM's preprocessing, to an image embedding (B, C, S / 16, S / 16)."""

    def __init__(self, config: TinyViTConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(config.widths[0])
        self.layers = nn.ModuleList(_build_stage(config, number) for number in range(len(config.widths)))
        dim = config.embedding_dim
        self.neck = nn.Sequential(
            nn.Conv2d(config.widths[-1], dim, 1, bias=False),
            ChannelNorm(dim, eps=1e-6),
            nn.Conv2d(dim, dim, 3, padding=1, bias=False),
            ChannelNorm(dim, eps=1e-6),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Encodes preprocessed images."""
        features = self.patch_embed(images.contiguous(memory_format=torch.channels_last))
        for stage in self.layers:
            features = stage(features)
        return cast(Tensor, self.neck(features)).contiguous()


def _build_stage(config: TinyViTConfig, number: int) -> TinyViTStage:
    width, depth = config.widths[number], config.depths[number]
    blocks: list[nn.Module] = (
        [ConvBlock(width) for _ in range(depth)]
        if number == 0
        else [AttentionBlock(width, config.head_width, config.windows[number - 1]) for _ in range(depth)]
    )
    is_last = number == len(config.widths) - 1
    downsample = None if is_last else Downsample(width, config.widths[number + 1], config.strides[number])
    return TinyViTStage(blocks, downsample)
