"""Contrastive pre-training of a small preset's CLIP on stickers, from scratch.

First crops of single stickers, which a small tower learns fast, then whole scenes. The class token of the
original path and the patch tokens of the surgery path are both trained to match the words of their objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.data.stickers.colours import COLOURS
from finetune.data.stickers.dataset import STYLES, Scene, StickerDataset, make_scene, nouns, render_crop
from finetune.data.stickers.sentences import make_sentence, spoken_tokens
from finetune.training.config import TrainConfig
from finetune.training.losses import TOTAL
from sspsam.images import frames
from sspsam.modeling.clip import CLIPTowers
from sspsam.phrases import tokenize

CROP_SIDE = 64
"""Side of a crop, px: a whole number of patches."""
CROP_SHARE = 0.3
"""Fraction of the steps on crops; the rest is on scenes."""
SCENE_BATCH_DIVISOR = 8
"""Number of crops per scene, which costs about twice as much."""
SCENE_SIDES = (224, 448)
"""Shortest and longest side of a scene, px."""
CORE_SHARE = 0.5
"""Fraction of scenes with core nouns only."""
COVERED = 0.4
"""A patch shows an object if at least this fraction of it is covered."""
BACKGROUND_WEIGHT = 0.3
TEXT_BATCH = 96
"""Sentences per step."""
MAX_LOGIT_SCALE = 100.0


class CLIPStage(nn.Module):
    """Trains both CLIP towers, and auxiliary parameters: a vector per noun and for the background.

    Image and text are trained independently: image features are pulled towards the vector of their noun,
    sentences towards that of their subject, and words towards their own. A head on the convolutional stem, if
    there is one, lets it learn as fast as a plain convolutional network.
    """

    def __init__(self, clip: CLIPTowers, config: TrainConfig, data: StickerDataset) -> None:
        super().__init__()
        self.clip = clip.requires_grad_(True)
        self.nouns = data.nouns or nouns("core", "base")
        self.class_vectors = nn.Parameter(torch.randn(len(self.nouns) + 1, clip.config.embed_dim))
        self.core = [noun for noun in nouns("core") if noun in self.nouns]
        self.colour_head = nn.Linear(clip.config.embed_dim, len(COLOURS) + 1)
        self.stem_head = nn.Linear(clip.config.width, len(self.nouns) + 1) if clip.config.stem else None
        spoken = spoken_tokens(self.nouns)
        self.token_heads = nn.Linear(clip.config.text_width, 2 * len(spoken))
        self.token_index: Tensor
        index = torch.full((clip.towers.vocab_size,), len(spoken) - 1)
        index[spoken] = torch.arange(len(spoken))
        self.register_buffer("token_index", index, persistent=False)
        self.config = config
        self.styles = tuple(data.styles or STYLES)
        self.crop_steps = int(config.steps * CROP_SHARE)

    @property
    def module(self) -> nn.Module:
        """Everything is trained."""
        return self

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Embeddings, norms and biases do not decay."""
        named = list(self.named_parameters())
        decays = [p for name, p in named if p.dim() > 1 and "embedding" not in name]
        others = [p for name, p in named if p.dim() <= 1 or "embedding" in name]
        return [{"params": decays}, {"params": others, "weight_decay": 0.0}]

    def loss(self, step: int) -> dict[str, Tensor]:
        """Cross-entropy of class tokens, patches and sentences with their nouns."""
        rng = np.random.default_rng((self.config.seed, step))
        device = self.class_vectors.device
        classes = F.normalize(self.class_vectors, dim=-1)  # (C + 1, D), the background last
        scale = self.clip.towers.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        colours: Tensor | None = None
        if step < self.crop_steps:
            images, labels, patch_labels = self._crops(rng)
        else:
            images, labels, patch_labels, colours = self._scenes(rng, step)
        stem: list[Tensor] = []
        with _watch(self.clip.towers.visual.conv1, stem):
            features = self.clip.encode_image(images.to(device))  # (B, 1 + G*G, D)
        logits = scale * F.normalize(features.float(), dim=-1) @ classes.T
        terms = {"patch": _patch_loss(logits[:, 1:], patch_labels.to(device))}
        terms |= self.text_terms(classes[:-1].detach(), scale.detach(), rng)
        if colours is not None:
            terms["colour"] = self._colour_loss(features[:, 1:], colours.to(device))
        if labels is not None:
            terms["image"] = F.cross_entropy(logits[:, 0], labels.to(device))
        if self.stem_head is not None:
            patches = self.stem_head(stem[0].flatten(2).transpose(1, 2)).float()  # (B, G*G, C + 1)
            terms["stem"] = _patch_loss(patches, patch_labels.to(device))
            if labels is not None:
                terms["stem"] = terms["stem"] + F.cross_entropy(patches.mean(1)[:, :-1], labels.to(device))
        terms[TOTAL] = torch.stack(list(terms.values())).sum()
        return terms

    def text_terms(self, classes: Tensor, scale: Tensor, rng: np.random.Generator) -> dict[str, Tensor]:
        """Losses of sentences alone.

        "text": sentences match their subject, and each noun, at its end, matches its meaning. "words": each
        word can be predicted from its features, and so can the previous one; otherwise the tower would forget
        all words but nouns.

        Args:
            classes: (C, D) unit vectors of the nouns.
            scale: of the logits.
            rng: source of sentences.
        """
        sentences = [make_sentence(self.nouns, rng) for _ in range(TEXT_BATCH)]
        tokens = tokenize([sentence.text for sentence in sentences]).to(classes.device)
        longest = int((tokens != 0).sum(dim=1).max())  # later tokens do not affect the sentence feature
        tokens = tokens[:, :longest]
        text = self.clip.encode_text(tokens)
        about = torch.stack([self._meaning(sentence.head) for sentence in sentences]).to(classes.device)
        rows = [row for row, sentence in enumerate(sentences) for _ in sentence.mentions]
        mentions = [mention for sentence in sentences for mention in sentence.mentions]
        ends = text.words[rows, [mention.token for mention in mentions]]  # (M, width)
        words = F.normalize((ends @ self.clip.towers.text_projection).float(), dim=-1)
        meant = torch.stack([self._meaning(mention.nouns) for mention in mentions]).to(classes.device)
        return {
            "text": _alignment(text.sentence.float(), about, classes, scale)
            + _alignment(words, meant, classes, scale),
            "words": self._words_loss(text.words, tokens),
        }

    def _words_loss(self, words: Tensor, tokens: Tensor) -> Tensor:
        """Cross-entropy of (B, L, width) word features with their own token and the previous one."""
        own, before = self.token_heads(words).float().chunk(2, dim=-1)  # (B, L, known tokens)
        labels = self.token_index[tokens]  # (B, L)
        said = (tokens != 0) & (tokens < self.clip.towers.vocab_size - 2)  # excludes padding, begin and end
        follows = said[:, 1:] & said[:, :-1]
        return F.cross_entropy(own[said], labels[said]) + F.cross_entropy(
            before[:, 1:][follows], labels[:, :-1][follows]
        )

    def _meaning(self, names: Sequence[str]) -> Tensor:
        """(C,) distribution over nouns for a word."""
        meaning = torch.zeros(len(self.nouns))
        meaning[[self.nouns.index(name) for name in names]] = 1 / len(names)
        return meaning

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

    def _scenes(self, rng: np.random.Generator, step: int) -> tuple[Tensor, None, Tensor, Tensor]:
        """Images, no labels of whole images, those of patches, and the colours of what patches show."""
        side, count = self.clip.config.image_size, max(1, self.config.batch_size // SCENE_BATCH_DIVISOR)
        images, labels, colours = [], [], []
        for i in range(count):
            names = self.core if self.core and rng.random() < CORE_SHARE else self.nouns
            scene = make_scene(step * count + i, nouns=names, styles=self.styles, size_range=SCENE_SIDES)
            image, frame = frames.image_to_clip(scene.image, side, self.clip.config.centred)
            images.append(image)
            patches = self._scene_labels(scene, frame)
            labels.append(patches[0])
            colours.append(patches[1])
        return torch.stack(images), None, torch.stack(labels), torch.stack(colours)

    def _scene_labels(self, scene: Scene, frame: frames.ClipFrame) -> tuple[Tensor, Tensor]:
        """(P,) nouns of patches, and (P, COLOURS + 1) colour distributions, all 0 without coverage."""
        side, patch = self.clip.config.image_size, self.clip.config.patch_size
        best = torch.zeros((side // patch) ** 2)
        nouns = torch.zeros(len(best), dtype=torch.long)
        colours = torch.zeros(len(best), len(COLOURS) + 1)
        for item in scene.objects:
            covered = F.avg_pool2d(frame.mask_to_canvas(item.mask)[None, None], patch).flatten()
            shares = [item.colours[name] for name in COLOURS]
            nouns[covered > best] = self.nouns.index(item.noun)
            colours[covered > best] = torch.tensor([*shares, 1 - sum(shares)])
            best = torch.maximum(best, covered)
        return self._label_patches(best, nouns), colours * (best >= COVERED)[:, None]

    def _colour_loss(self, features: Tensor, shares: Tensor) -> Tensor:
        """Cross-entropy of (B, P, D) features with all colours of the objects there."""
        shown = shares.sum(-1) > 0
        logits = self.colour_head(features[shown]).float()
        return F.cross_entropy(logits, shares[shown], reduction="sum") / shown.sum().clamp(min=1)

    def _label_patches(self, covered: Tensor, nouns: Tensor) -> Tensor:
        labels = torch.full(covered.shape, -1, dtype=torch.long)
        labels[covered == 0] = len(self.nouns)
        return torch.where(covered >= COVERED, nouns, labels)


def _alignment(features: Tensor, target: Tensor, classes: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy and distance of (N, D) unit features to their meaning: (N, C) class distributions."""
    near = 1 - (features * F.normalize(target @ classes, dim=-1)).sum(-1).mean()
    return F.cross_entropy(scale * features @ classes.T, target) + near


def _patch_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of (B, P, C + 1) logits; labels are (B, P): a noun, C for background, -1 for neither."""
    classes = logits.shape[-1]
    weight = torch.ones(classes, device=logits.device)
    weight[-1] = BACKGROUND_WEIGHT
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight=weight, ignore_index=-1)


@contextmanager
def _watch(module: nn.Module, seen: list[Tensor]) -> Iterator[None]:
    """Captures a module's output."""
    handle = module.register_forward_hook(lambda module, arguments, output: seen.append(output))
    try:
        yield
    finally:
        handle.remove()
