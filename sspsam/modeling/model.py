"""SSP-SAM: a referring phrase to a mask, in one stage.

Source: *SSP-SAM: SAM with Semantic-Spatial Prompt for Referring Expression Segmentation* (arXiv 2603.18086).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from sspsam.modeling.adapters import PhraseFeatures, build_linguistic_adapter, build_visual_adapter
from sspsam.modeling.clip import CLIPTowers, TextFeatures
from sspsam.modeling.learned_tokens import LearnedTokens
from sspsam.modeling.prompts import BoxHead, PromptGenerator, Prompts
from sspsam.modeling.sam import SAMDecoder
from sspsam.presets import IMAGE_ENCODERS, Preset, get_preset


class SSPSAMOutput(NamedTuple):
    """Output of the model."""

    mask_logits: Tensor
    """(B, 1, 4h, 4w) over the padded SAM square."""
    boxes: Tensor | None
    """(B, 4) cxcywh in 0..1 of the CLIP input; None in a variant without the REC head."""
    iou_predictions: Tensor
    """(B,): the decoder's own estimate of its mask's IoU."""


class EncodedPhrase(NamedTuple):
    """Everything that depends on the phrase alone."""

    sentence_feature: Tensor
    """(B, D)."""
    phrase: PhraseFeatures

    def row(self, number: int, length: int) -> EncodedPhrase:
        """One phrase of the batch, cut to its tokens, in separate memory."""
        sentence_feature = self.sentence_feature[number : number + 1].clone()
        return EncodedPhrase(sentence_feature, self.phrase.row(number, length))

    @classmethod
    def stack(cls, encoded: Sequence[EncodedPhrase]) -> EncodedPhrase:
        """Concatenates rows to a batch, padded to the longest."""
        sentences, phrases = zip(*encoded, strict=True)
        return cls(torch.cat(sentences), PhraseFeatures.stack(phrases))

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return self.sentence_feature.nbytes + self.phrase.nbytes


class SSPSAM(nn.Module):
    """CLIP and SAM, connected by the semantic-spatial prompt encoder.

    SAM's image encoder is not part of it: its output is an input, computed once per image.
    """

    mask_threshold = 0.0
    """Logits above it are mask."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.preset = preset
        image_encoder = IMAGE_ENCODERS[preset.image_encoder]
        dim = image_encoder.embedding_dim
        self.clip = CLIPTowers(preset.clip)
        self.learned_words = LearnedTokens(self.clip.towers.vocab_size, preset.clip.text_width)
        self.linguistic_adapter = build_linguistic_adapter(preset)
        self.visual_adapter = build_visual_adapter(preset)
        self.fusion = nn.Linear(preset.prompt.adapter_dim, dim)
        self.prompt_generator = PromptGenerator(preset.prompt, dim, patches=preset.clip.grid_size**2)
        self.box_head = BoxHead(dim) if preset.prompt.box_head else None
        self.presence_head = nn.Linear(dim, 1) if preset.prompt.presence_head else None
        self.sam = SAMDecoder(preset.decoder, image_encoder)
        self.clip.requires_grad_(False)
        self.sam.prompt_encoder.requires_grad_(False)

    def forward(self, clip_images: Tensor, image_embeddings: Tensor, tokens: Tensor) -> SSPSAMOutput:
        """Segments the referent of each phrase in its image.

        Args:
            clip_images: (B, 3, S, S), padded CLIP input, normalised.
            image_embeddings: (B, C, h, w), SAM's image encoder output.
            tokens: (B, 77) int64, padded with 0.
        """
        patch_features = self.encode_image(clip_images)
        encoded = self.encode_phrase(tokens)
        prompts = self.make_prompts(patch_features, encoded)
        return self.decode(image_embeddings, prompts)

    def encode_image(self, clip_images: Tensor) -> Tensor:
        """CLIP patch features, (B, G*G, D).

        They are divided by their norm over the token axis, class token included, instead of the usual channel
        axis: the released weights were trained this way.
        """
        features: Tensor = self.clip.encode_image(clip_images)  # (B, 1 + G*G, D)
        norm: Tensor = features.norm(dim=1, keepdim=True)
        return (features / norm)[:, 1:]

    def encode_phrase(self, tokens: Tensor) -> EncodedPhrase:
        """CLIP text features through the linguistic adapter."""
        return self.adapt_phrase(self.encode_text(tokens), tokens)

    def encode_text(self, tokens: Tensor) -> TextFeatures:
        """CLIP text features of (B, L) tokens, including learned words."""
        return self.clip.encode_text(tokens, self.learned_words(tokens))

    def adapt_phrase(self, text: TextFeatures, tokens: Tensor) -> EncodedPhrase:
        """CLIP text features of (B, L) tokens through the linguistic adapter."""
        return EncodedPhrase(text.sentence, self.linguistic_adapter(text, tokens))

    def make_prompts(
        self, patch_features: Tensor, encoded: EncodedPhrase, with_patches: bool = False
    ) -> Prompts:
        """The semantic-spatial prompts for (B, G*G, D) patch features and B phrases."""
        return cast(Prompts, self.prompt_generator(self.fuse(patch_features, encoded), with_patches))

    def fuse(self, patch_features: Tensor, encoded: EncodedPhrase) -> Tensor:
        """Multimodal patches, (B, G*G, C): adapted patches gated by the phrase vector."""
        adapted = self.visual_adapter(patch_features, encoded.sentence_feature, encoded.phrase)
        gate = encoded.phrase.phrase.tanh().unsqueeze(1)  # (B, 1, adapter dim)
        return cast(Tensor, self.fusion(adapted.tanh() * gate))

    def predict_box(self, prompts: Prompts) -> Tensor | None:
        """Boxes (B, 4), cxcywh in 0..1 of the CLIP input; None without a box head."""
        return None if self.box_head is None else self.box_head(prompts.box_token)

    def presence_logits(self, prompts: Prompts) -> Tensor | None:
        """Logits (B,) of whether the phrase has a target; None without a presence head.

        Source: the no-target classifier of ReLA (Liu et al., GRES, arXiv 2306.00968), on the box token.
        """
        return None if self.presence_head is None else self.presence_head(prompts.box_token)[:, 0]

    def decode(
        self, image_embeddings: Tensor, prompts: Prompts, extra_prompts: Tensor | None = None
    ) -> SSPSAMOutput:
        """Decodes masks and boxes from prompts.

        Args:
            image_embeddings: (B, C, h, w).
            prompts: as from make_prompts.
            extra_prompts: (B, M, C), SAM's own embeddings of points and boxes, if the user gave any.
        """
        sparse = prompts.sparse_prompt_embeddings(extra_prompts)
        mask_logits, iou_predictions = self.sam(image_embeddings, sparse)
        boxes = self.predict_box(prompts)
        return SSPSAMOutput(mask_logits, boxes, iou_predictions)


def build_model(preset: str) -> SSPSAM:
    """Builds a variant with random weights, on the CPU, in evaluation mode.

    Raises:
        ValueError: there is no preset of that name.
    """
    return SSPSAM(get_preset(preset)).eval()
