"""The variants of SSP-SAM, as a table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

StemConfig = tuple[tuple[int, int], ...]
"""Stages of a convolutional stem: (channels, residual blocks). Each stage halves the grid."""


@dataclass(frozen=True)
class CLIPConfig:
    """Sizes of the two CLIP towers (open_clip's architecture)."""

    image_size: int
    """Side of the square CLIP input, px."""
    patch_size: int
    width: int
    layers: int
    heads: int
    embed_dim: int
    """Joint image-text dimension D."""
    text_width: int
    text_layers: int
    text_heads: int
    surgery_blocks: int = 6
    """Number of final image blocks with CLIP Surgery's value-value path."""
    quick_gelu: bool = True
    """OpenAI's weights were trained with the sigmoid approximation of GELU."""
    centred: bool = True
    """Whether the image is centred in its padded input; otherwise at the top left, as for SAM."""
    stem: StemConfig = ()
    """Convolutions instead of the patch projection, for small towers; empty: stock."""

    @property
    def grid_size(self) -> int:
        """Patches along one side of the input, G."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Sizes of a SAM image encoder (segment_anything's ViT)."""

    image_size: int
    """Side of the square SAM input, px."""
    width: int
    depth: int
    heads: int
    global_attention_blocks: tuple[int, ...]
    window_size: int = 14
    patch_size: int = 16
    embedding_dim: int = 256
    stem: StemConfig = ()
    """Convolutions instead of the patch projection, for small encoders; empty: stock."""

    @property
    def embedding_size(self) -> int:
        """Side of the image embedding, cells."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class TinyViTConfig:
    """Sizes of MobileSAM's image encoder (TinyViT): one convolutional stage, then three with windowed
    attention.
    """

    image_size: int
    """Side of the square SAM input, px."""
    widths: tuple[int, ...]
    """Channels of each stage."""
    depths: tuple[int, ...]
    """Blocks of each stage."""
    windows: tuple[int, ...]
    """Window side of the stages after the first."""
    strides: tuple[int, ...]
    """Strides between consecutive stages; the stem before the first has stride 4."""
    head_width: int = 32
    embedding_dim: int = 256

    @property
    def embedding_size(self) -> int:
        """Side of the image embedding, cells."""
        return self.image_size // (4 * prod(self.strides))


Verification = Literal["gaussian", "cosine", "none"]


@dataclass(frozen=True)
class PromptConfig:
    """Sizes of the semantic-spatial prompt encoder."""

    adapter_dim: int = 512
    """Width of both attention adapters."""
    adapter_heads: int = 8
    tokens: int = 128
    """Number of semantic-spatial prompts."""
    layers: int = 6
    heads: int = 8
    feedforward_dim: int = 2048
    placed_patches: bool = False
    """Add positions to the patches in the sequence, not only to queries and keys."""
    adapter_dropout: float = 0.0
    """Dropout of the patches' attention to words during training."""
    linguistic_adapter: bool = True
    """If false, CLIP's sentence feature replaces the phrase vector."""
    visual_adapter: bool = True
    """If false, patches are only projected."""
    verification: Verification = "gaussian"
    """How a patch is scaled by its agreement with the words: by a learned Gaussian, directly, or not at all.

    """
    box_head: bool = True
    """If false, no REC box is predicted or trained."""
    presence_head: bool = False
    """Whether the box token predicts if the phrase has a target; the paper's model uses the empty mask alone.

    """


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the SAM mask decoder; its width is the image embedding's."""

    depth: int = 2
    heads: int = 8
    feedforward_dim: int = 2048
    mask_in_channels: int = 16


@dataclass(frozen=True)
class Preset:
    """One variant of the model."""

    clip: CLIPConfig
    image_encoder: str
    """Key of IMAGE_ENCODERS."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    min_presence: float = 0.5
    """Variants with a presence head answer "nothing fits" below this probability."""
    weights: str | None = None
    """File of the packaged weights, if any."""


IMAGE_ENCODERS: dict[str, ImageEncoderConfig | TinyViTConfig] = {
    "vit_b": ImageEncoderConfig(1024, 768, 12, 12, (2, 5, 8, 11)),
    "vit_l": ImageEncoderConfig(1024, 1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": ImageEncoderConfig(1024, 1280, 32, 16, (7, 15, 23, 31)),
    "mobile": TinyViTConfig(1024, (64, 128, 160, 320), (2, 2, 6, 2), (7, 14, 7), (2, 2, 1)),
    "vit_demo": ImageEncoderConfig(
        256, 128, 2, 4, (), window_size=8, patch_size=8, embedding_dim=128, stem=((32, 0), (64, 1), (128, 3)),
    ),
    "vit_test": ImageEncoderConfig(64, 32, 2, 2, (1,), window_size=2, embedding_dim=32),
}  # fmt: skip

PRESETS: dict[str, Preset] = {
    "ssp-sam-224": Preset(
        clip=CLIPConfig(
            image_size=224, patch_size=16, width=768, layers=12, heads=12,
            embed_dim=512, text_width=512, text_layers=12, text_heads=8,
        ),
        image_encoder="vit_h",
        prompt=PromptConfig(adapter_dropout=0.1),
    ),
    "ssp-sam-336": Preset(
        clip=CLIPConfig(
            image_size=336, patch_size=14, width=1024, layers=24, heads=16,
            embed_dim=768, text_width=768, text_layers=12, text_heads=12,
        ),
        image_encoder="vit_h",
        prompt=PromptConfig(adapter_dropout=0.1),
    ),
    "ssp-sam-demo": Preset(
        clip=CLIPConfig(
            image_size=256, patch_size=16, width=192, layers=4, heads=4,
            embed_dim=192, text_width=128, text_layers=4, text_heads=4,
            surgery_blocks=2, quick_gelu=False, centred=False, stem=((24, 0), (48, 1), (96, 2), (192, 3)),
        ),
        image_encoder="vit_demo",
        prompt=PromptConfig(
            adapter_dim=192, adapter_heads=4, tokens=16, layers=4, heads=4, feedforward_dim=512,
            placed_patches=True, presence_head=True,
        ),
        decoder=DecoderConfig(heads=4, feedforward_dim=512),
        min_presence=0.65,
        weights="ssp-sam-demo.safetensors",
    ),
    "ssp-sam-test": Preset(
        clip=CLIPConfig(
            image_size=32, patch_size=8, width=32, layers=3, heads=2,
            embed_dim=32, text_width=32, text_layers=1, text_heads=2, surgery_blocks=2,
        ),
        image_encoder="vit_test",
        prompt=PromptConfig(adapter_dim=32, adapter_heads=2, tokens=4, layers=1, heads=2, feedforward_dim=64),
        decoder=DecoderConfig(heads=2, feedforward_dim=64, mask_in_channels=4),
    ),
}  # fmt: skip


ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "linguistic-adapter": {"linguistic_adapter": False},
    "verification-gaussian": {"verification": "cosine"},
    "verification-score": {"verification": "none"},
    "visual-adapter": {"visual_adapter": False, "verification": "none"},
    "rec-head": {"box_head": False},
}
"""Ablation -> the PromptConfig fields that implement it; `ssp-sam-224-without-rec-head` is a preset.

Applied in this order, so that larger ablations precede smaller ones.
"""

_CHANGE = re.compile("-(with|without)-")


def base_preset(name: str) -> str:
    """The entry of PRESETS at the start of a name."""
    return _CHANGE.split(name, maxsplit=1)[0]


def with_image_encoder(name: str, image_encoder: str | None) -> str:
    """The name of a preset with another SAM image encoder; unchanged if none is given.

    Raises:
        ValueError: unknown preset or encoder, or they are incompatible.
    """
    own = get_preset(name).image_encoder
    if image_encoder in (None, "", own):
        return name
    changed = f"{name}-with-{image_encoder}"
    get_preset(changed)
    return changed


class PresetError(ValueError):
    """No preset, or no combination of one with an encoder, has this name."""


def get_preset(name: str) -> Preset:
    """Returns a preset.

    Args:
        name: key of PRESETS, followed by any number of `-without-<ablation>`, and by `-with-<key of
            IMAGE_ENCODERS>` for another SAM image encoder.

    Raises:
        PresetError: unknown preset, ablation or encoder, or the shape of the encoder's embedding does not
            match the preset's decoder.
    """
    base, *changes = _CHANGE.split(name)
    if base not in PRESETS:
        raise PresetError(f"unknown preset {name!r}, expected one of: {', '.join(PRESETS)}")
    pairs = list(zip(changes[::2], changes[1::2], strict=True))
    left_out = [part for change, part in pairs if change == "without"]
    if unknown := [part for part in left_out if part not in ABLATIONS]:
        raise PresetError(
            f"unknown ablation {unknown[0]!r} in {name!r}, expected one of: {', '.join(ABLATIONS)}"
        )
    preset = PRESETS[base]
    for part in sorted(left_out, key=list(ABLATIONS).index):
        preset = _without(preset, part)
    for image_encoder in (part for change, part in pairs if change == "with"):
        preset = _with(preset, image_encoder, base)
    return preset


def _without(preset: Preset, part: str) -> Preset:
    """As in the authors' code: without the visual adapter, CLIP runs without surgery."""
    clip = replace(preset.clip, surgery_blocks=0) if part == "visual-adapter" else preset.clip
    return replace(preset, clip=clip, prompt=replace(preset.prompt, **ABLATIONS[part]), weights=None)


def _with(preset: Preset, image_encoder: str, base: str) -> Preset:
    if image_encoder not in IMAGE_ENCODERS:
        raise PresetError(
            f"unknown image encoder {image_encoder!r}, expected one of: {', '.join(IMAGE_ENCODERS)}"
        )
    expected, found = (_embedding_shape(name) for name in (preset.image_encoder, image_encoder))
    if expected != found:
        raise PresetError(
            f"the embedding of image encoder {image_encoder!r} is {found}, but {base} requires {expected}"
        )
    return replace(preset, image_encoder=image_encoder, weights=None)


def _embedding_shape(image_encoder: str) -> str:
    config = IMAGE_ENCODERS[image_encoder]
    return f"{config.embedding_dim}x{config.embedding_size}x{config.embedding_size}"
