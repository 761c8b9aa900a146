"""Contrastive pre-training of a small preset's CLIP on stickers, from scratch.

First crops of single stickers, which a small tower learns fast, then whole scenes. Both the class token of
the ordinary path and the patch tokens of the surgery path learn to lie close to the words for what they show.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.config import TrainConfig
from finetune.data.stickers import STYLES, Scene, StickerDataset, make_scene, nouns, render_crop
from finetune.data.vocabulary import vocabulary
from finetune.losses import TOTAL
from sspsam import frames
from sspsam.clip import CLIPTowers
from sspsam.phrases import tokenize

CROP_SIDE = 96
"""Side of a crop, px: a whole number of patches."""
CROP_SHARE = 0.63
"""Part of the steps that see crops; the rest sees scenes."""
SCENE_BATCH_DIVISOR = 6
"""A scene costs as much as about six crops."""
SCENE_SIDES = (192, 448)
"""Shortest and longest side of a scene, px."""
COVERED = 0.5
"""A patch shows an object when at least this share of it is covered."""
BACKGROUND_WEIGHT = 0.3
TEMPLATES = (
    "{noun}", "the {noun}", "a {noun}", "{plural}", "all {plural}", "the {plural}", "both {plural}",
    "{noun} on the left", "the {noun} on the right", "{noun} at the top", "the bottom {noun}",
    "the leftmost {noun}", "the biggest {noun}", "small {noun}", "second {noun} from the left",
    "the red {noun}", "the {noun} in the middle",
)  # fmt: skip


class CLIPStage(nn.Module):
    """Learns both CLIP towers and a throw-away background vector."""

    def __init__(self, clip: CLIPTowers, config: TrainConfig, data: StickerDataset) -> None:
        super().__init__()
        self.clip = clip.requires_grad_(True)
        self.background = nn.Parameter(torch.randn(clip.config.embed_dim) * 0.02)
        self.config = config
        self.nouns = data.nouns or nouns("core", "base")
        self.styles = tuple(data.styles or STYLES)
        self.crop_steps = int(config.steps * CROP_SHARE)

    @property
    def module(self) -> nn.Module:
        """Everything learns."""
        return self

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Embeddings, norms and biases do not decay."""
        named = list(self.named_parameters())
        decays = [p for name, p in named if p.dim() > 1 and "embedding" not in name]
        others = [p for name, p in named if p.dim() <= 1 or "embedding" in name]
        return [{"params": decays}, {"params": others, "weight_decay": 0.0}]

    def loss(self, step: int) -> dict[str, Tensor]:
        """Cross-entropy of class tokens and patches with the nouns they show."""
        rng = np.random.default_rng((self.config.seed, step))
        device = self.background.device
        text = self._text_features(rng).to(device)  # (C, D)
        crops = step < self.crop_steps
        images, labels, patch_labels = self._crops(rng) if crops else self._scenes(rng, step)
        features = self.clip.encode_image(images.to(device))  # (B, 1 + G*G, D)
        features = F.normalize(features.float(), dim=-1)
        scale = self.clip.towers.logit_scale.exp().clamp(max=100)
        terms = {"patch": self._patch_loss(scale * features[:, 1:], text, patch_labels.to(device))}
        terms[TOTAL] = terms["patch"]
        if labels is not None:
            terms["image"] = F.cross_entropy(scale * features[:, 0] @ text.T, labels.to(device))
            terms[TOTAL] = terms[TOTAL] + terms["image"]
        return terms

    def _text_features(self, rng: np.random.Generator) -> Tensor:
        chosen = rng.integers(len(TEMPLATES), size=len(self.nouns))
        phrases = [
            TEMPLATES[i].format(noun=noun, plural=vocabulary()[noun].plural)
            for i, noun in zip(chosen, self.nouns, strict=True)
        ]
        return self.clip.encode_text(tokenize(phrases).to(self.background.device)).sentence.float()

    def _patch_loss(self, patches: Tensor, text: Tensor, labels: Tensor) -> Tensor:
        """Labels are (B, G*G): a noun, C for background, -1 for neither."""
        classes = torch.cat([text, F.normalize(self.background, dim=0)[None]])
        logits = (patches @ classes.T).flatten(0, 1)
        weight = torch.ones(len(classes), device=logits.device)
        weight[-1] = BACKGROUND_WEIGHT
        return F.cross_entropy(logits, labels.flatten(), weight=weight, ignore_index=-1)

    def _crops(self, rng: np.random.Generator) -> tuple[Tensor, Tensor | None, Tensor]:
        labels = rng.integers(len(self.nouns), size=self.config.batch_size)
        images, coverage = [], []
        for label in labels:
            style = self.styles[rng.integers(len(self.styles))]
            image, mask = render_crop(self.nouns[label], style, rng, CROP_SIDE)
            images.append(frames.image_to_clip(image, CROP_SIDE)[0])
            coverage.append(torch.from_numpy(mask).float())
        covered = F.avg_pool2d(torch.stack(coverage)[:, None], self.clip.config.patch_size).flatten(1)
        target = torch.from_numpy(labels)
        return torch.stack(images), target, self._label_patches(covered, target[:, None].expand_as(covered))

    def _scenes(self, rng: np.random.Generator, step: int) -> tuple[Tensor, Tensor | None, Tensor]:
        side, count = self.clip.config.image_size, max(1, self.config.batch_size // SCENE_BATCH_DIVISOR)
        images, labels = [], []
        for i in range(count):
            scene = make_scene(step * count + i, nouns=self.nouns, styles=self.styles, size_range=SCENE_SIDES)
            image, frame = frames.image_to_clip(scene.image, side, self.clip.config.centred)
            images.append(image)
            labels.append(self._scene_labels(scene, frame))
        return torch.stack(images), None, torch.stack(labels)

    def _scene_labels(self, scene: Scene, frame: frames.ClipFrame) -> Tensor:
        side, patch = self.clip.config.image_size, self.clip.config.patch_size
        best = torch.zeros((side // patch) ** 2)
        nouns = torch.zeros(len(best), dtype=torch.long)
        for item in scene.objects:
            covered = F.avg_pool2d(frame.mask_to_canvas(item.mask)[None, None], patch).flatten()
            nouns[covered > best] = self.nouns.index(item.noun)
            best = torch.maximum(best, covered)
        return self._label_patches(best, nouns)

    def _label_patches(self, covered: Tensor, nouns: Tensor) -> Tensor:
        labels = torch.full(covered.shape, -1, dtype=torch.long)
        labels[covered == 0] = len(self.nouns)
        return torch.where(covered >= COVERED, nouns, labels)
