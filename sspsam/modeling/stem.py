"""A convolutional stem for small encoders: learns in minutes what takes a small ViT hours.

Source: *Early Convolutions Help Transformers See Better* (arXiv 2106.14881); residual blocks as in ResNet
(arXiv 1512.03385).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sspsam.presets import StemConfig


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        inner = F.gelu(self.norm1(self.conv1(features)))
        return F.gelu(features + self.norm2(self.conv2(inner)))


class ConvStem(nn.Sequential):
    """Replaces a patch projection: (B, 3, S, S) to (B, width, S / stride, S / stride)."""

    def __init__(self, stages: StemConfig, width: int, stride: int) -> None:
        """Builds the stages.

        Raises:
            ValueError: the stages do not result in the width and stride.
        """
        if stages[-1][0] != width or 2 ** len(stages) != stride:
            raise ValueError(f"a stem of {stages} does not result in width {width} and stride {stride}")
        layers: list[nn.Module] = []
        channels = 3
        for out_channels, blocks in stages:
            layers += [nn.Conv2d(channels, out_channels, 3, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(out_channels), nn.GELU()]
            layers += [ResidualBlock(out_channels) for _ in range(blocks)]
            channels = out_channels
        super().__init__(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Runs channels-last, the fastest layout for convolutions on CPUs."""
        features = images.contiguous(memory_format=torch.channels_last)
        for layer in self:
            features = layer(features)
        return features


class PatchEmbedding(nn.Module):
    """A stem with the interface of segment_anything's patch embedding: (B, 3, S, S) to (B, h, w, width)."""

    def __init__(self, stem: ConvStem) -> None:
        super().__init__()
        self.stem = stem

    def forward(self, images: Tensor) -> Tensor:
        """Channels are last here."""
        return cast(Tensor, self.stem(images).permute(0, 2, 3, 1))
