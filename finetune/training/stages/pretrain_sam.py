"""Promptable pre-training of a small preset's SAM on stickers, from scratch: points and boxes to masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.data.stickers.dataset import Scene, StickerDataset, make_scene
from finetune.training.config import TrainConfig
from finetune.training.losses import Criterion, LossWeights
from sspsam.images import frames
from sspsam.images.masks import mask_to_box_xyxy
from sspsam.modeling.sam import SAMDecoder
from sspsam.presets import IMAGE_ENCODERS

PROMPTS_PER_SCENE = 6
SCENE_SIDES = (256, 512)
"""Shortest and longest side of a scene, px: about the encoder's resolution."""
POINTS = 6
"""Points per prompt: the first inside each object, the others anywhere."""
TOGETHER = (1, 1, 1, 2, 3)
"""Number of objects per prompt: the answer to "all dogs" is one mask, too."""
BOX_JITTER = 0.1
"""Standard deviation of a box corner, as a share of the box's side."""
SAM_LOSS = LossWeights(dice=1.0, focal=20.0, l1=0.0, generalized_box_iou=0.0, iou_prediction=1.0)
"""Weights of *Segment Anything* (arXiv 2304.02643), sec. A."""


class SAMStage(nn.Module):
    """Trains image encoder, prompt encoder and mask decoder together."""

    def __init__(
        self,
        image_encoder: nn.Module,
        sam: SAMDecoder,
        config: TrainConfig,
        data: StickerDataset,
        encoder: str,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.sam = sam.requires_grad_(True)
        self.config = config
        self.data = data
        self.side = IMAGE_ENCODERS[encoder].image_size
        self.criterion = Criterion(SAM_LOSS)

    @property
    def module(self) -> nn.Module:
        """Everything is trained."""
        return self

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Norms, biases and embeddings do not decay."""
        named = list(self.named_parameters())
        decays = [p for name, p in named if p.dim() > 1 and "embed" not in name and "token" not in name]
        chosen = {id(p) for p in decays}
        others = [p for _, p in named if id(p) not in chosen]
        return [{"params": decays}, {"params": others, "weight_decay": 0.0}]

    def loss(self, step: int) -> dict[str, Tensor]:
        """Mask terms over `batch_size` scenes with several prompts each; boxes and points alternate."""
        rng = np.random.default_rng((self.config.seed, step))
        device = next(self.sam.parameters()).device
        count = self.config.batch_size
        nouns, styles = self.data.nouns, self.data.styles
        scenes = [
            make_scene(
                number,
                nouns=nouns,
                styles=styles,
                size_range=SCENE_SIDES,
                sticker_range=self.data.sticker_range_of(number),
            )
            for number in range(step * count, (step + 1) * count)
        ]
        images = torch.stack([frames.image_to_sam(scene.image, self.side) for scene in scenes])
        embeddings = self.image_encoder(images.to(device))  # (B, C, h, w)
        chosen = [self._choose(scene, rng, together=step % 2 == 0) for scene in scenes]
        sparse = torch.cat(
            [self._prompts(scene, groups, rng, step) for scene, groups in zip(scenes, chosen, strict=True)]
        )
        mask_logits, iou_predictions = self.sam(
            embeddings.repeat_interleave(PROMPTS_PER_SCENE, dim=0), sparse.to(embeddings.dtype)
        )
        targets = torch.stack(
            [
                frames.mask_to_sam(scene.mask_of(group), mask_logits.shape[-1])
                for scene, groups in zip(scenes, chosen, strict=True)
                for group in groups
            ]
        )
        terms: dict[str, Tensor] = self.criterion(
            mask_logits, None, targets[:, None].to(device), None, targets.flatten(1).any(1).to(device),
            iou_predictions=iou_predictions,
        )  # fmt: skip
        return terms

    def _choose(self, scene: Scene, rng: np.random.Generator, together: bool) -> list[tuple[int, ...]]:
        """Prompted objects: single ones, or several together."""
        groups = []
        for _ in range(PROMPTS_PER_SCENE):
            count = min(int(rng.choice(TOGETHER)) if together else 1, len(scene.objects))
            groups.append(tuple(int(i) for i in rng.permutation(len(scene.objects))[:count]))
        return groups

    def _prompts(
        self, scene: Scene, groups: list[tuple[int, ...]], rng: np.random.Generator, step: int
    ) -> Tensor:
        """SAM's embeddings of one kind of prompt for each group: (P, 2 or POINTS + 1, C)."""
        hw = scene.image.shape
        encoder = self.sam.prompt_encoder
        device = next(self.sam.parameters()).device
        original_hw = (hw[0], hw[1])
        if step % 2:
            boxes = [_jittered_box(scene.mask_of(group), rng) for group in groups]
            corners = np.stack(boxes).reshape(-1, 2)
            placed = frames.points_to_sam(corners, original_hw, self.side).reshape(-1, 4)
            sparse, _ = encoder(points=None, boxes=placed.to(device), masks=None)
        else:
            picked = np.stack([_random_points(scene, group, rng) for group in groups])  # (P, POINTS, 3)
            xy = frames.points_to_sam(picked[..., :2].reshape(-1, 2), original_hw, self.side)
            labels = torch.from_numpy(picked[..., 2])
            points = (xy.reshape(len(groups), POINTS, 2).to(device), labels.to(device))
            sparse, _ = encoder(points=points, boxes=None, masks=None)
        return sparse  # type: ignore[no-any-return]  # segment_anything is not typed


def _jittered_box(mask: frames.BoolMask, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float32]]:
    box = np.asarray(mask_to_box_xyxy(mask), np.float32)
    size = np.tile(box[2:] - box[:2], 2)
    return box + np.clip(rng.normal(0, BOX_JITTER, 4), -0.2, 0.2).astype(np.float32) * size


def _random_points(
    scene: Scene, group: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(POINTS, 3) x, y, label."""
    mask = scene.mask_of(group)
    inside = np.argwhere(mask)
    rows = []
    for i in range(POINTS):
        if i < len(group) or rng.random() < 0.5:
            among = np.argwhere(scene.objects[group[i]].mask) if i < len(group) else inside
            y, x = among[rng.integers(len(among))]
        else:
            y, x = rng.integers(mask.shape[0]), rng.integers(mask.shape[1])
        rows.append((x, y, int(mask[y, x])))
    return np.asarray(rows, np.int64)
