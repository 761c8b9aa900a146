"""Teaches the text side other wordings of phrases that the model knows, without images.

The text tower and the linguistic adapter learn to encode a wording as they, before this training, encoded the
template phrase with the same meaning. Everything after them stays as it is, so that a step costs little.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.data.stickers.dataset import StickerDataset, nouns
from finetune.data.stickers.sentences import make_sentence
from finetune.data.stickers.wording.reword import reword
from finetune.training.config import ConfigError, TrainConfig
from finetune.training.losses import TOTAL
from sspsam import SSPSAM, Predictor
from sspsam.modeling.adapters import VisualAttentionAdapter, similarity_map
from sspsam.phrases import tokenize

SENTENCE_SHARE = 0.5
"""Fraction of the phrases that are sentences without a scene; the rest is about scenes of the data set."""
SAME_SHARE = 0.2
"""Fraction of the wordings that are the template phrase itself, so that it keeps its encoding."""
SCENES = 400
"""Scenes whose phrases are used."""
PROBED_SCENES = 64
PATCHES_PER_SCENE = 64
LENGTHS = 4
"""Chunks of a batch, by length."""
PATCHES_PER_STEP = 48
"""Patches whose attention to the words is compared in a step."""


class _Encoding(NamedTuple):
    sentence: Tensor
    """(B, D), L2-normalised."""
    phrase: Tensor
    """(B, adapter dim)."""
    attended: Tensor
    """(B, P, adapter dim): the words as the probed patches attend to them."""


class WordingStage:
    """Distils the encoding of template phrases into that of their wordings."""

    def __init__(self, predictor: Predictor, config: TrainConfig, data: StickerDataset) -> None:
        self.model = predictor.model
        self.config = config
        self.device = predictor.device
        self.nouns = data.nouns or nouns("core", "base")
        adapter = self.model.visual_adapter
        if not isinstance(adapter, VisualAttentionAdapter) or adapter.verification == "none":
            raise ConfigError(
                f"stage wording needs a visual adapter that attends to words, not {config.preset}"
            )
        self.visual_adapter = adapter
        self.model.requires_grad_(False)
        self.teacher = deepcopy(self.model).eval()
        for parameter in self._learning().values():
            parameter.requires_grad_(True)
        self.phrases: list[str] = []
        self.probes = self._read_scenes(predictor, data)

    @property
    def module(self) -> nn.Module:
        """The model including frozen parts."""
        return self.model

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Text tower and linguistic adapter, without weight decay."""
        return [{"params": list(self._learning().values()), "weight_decay": 0.0}]

    def state(self) -> dict[str, Tensor]:
        """The trained tensors by the model's names."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self._learning().items()}

    def loss(self, step: int) -> dict[str, Tensor]:
        """Distances of the wordings' encodings from those of the template phrases."""
        rng = np.random.default_rng((self.config.seed, step))
        phrases = [self._phrase(rng) for _ in range(self.config.batch_size)]
        wordings = [phrase if rng.random() < SAME_SHARE else reword(phrase, rng) for phrase in phrases]
        probes = self.probes[torch.from_numpy(rng.integers(len(self.probes), size=PATCHES_PER_STEP))]
        with torch.no_grad():
            wanted = self._encode(self.teacher, phrases, probes)
        given = self._encode(self.model, wordings, probes)
        terms = {
            "sentence": 1 - (given.sentence.float() * wanted.sentence).sum(-1).mean(),
            "phrase": _relative_error(given.phrase, wanted.phrase),
            "attended": _relative_error(given.attended, wanted.attended),
        }
        return terms | {TOTAL: torch.stack(list(terms.values())).sum()}

    def _learning(self) -> dict[str, nn.Parameter]:
        text = {f"clip.{name}": parameter for name, parameter in self.model.clip.text_tower().items()}
        adapter = self.model.linguistic_adapter.named_parameters(prefix="linguistic_adapter")
        return text | dict(adapter)

    def _phrase(self, rng: np.random.Generator) -> str:
        if rng.random() < SENTENCE_SHARE:
            return make_sentence(self.nouns, rng).text
        return self.phrases[int(rng.integers(len(self.phrases)))]

    def _encode(self, model: SSPSAM, phrases: list[str], probes: Tensor) -> _Encoding:
        """Encodes phrases in chunks of similar length, so that little of the work is padding."""
        tokens = tokenize(phrases)
        lengths = (tokens != 0).sum(dim=1)
        order = lengths.argsort()
        parts = [self._encode_chunk(model, tokens[rows], probes) for rows in order.chunk(LENGTHS)]
        back = order.argsort()
        return _Encoding(*(torch.cat(rows)[back] for rows in zip(*parts, strict=True)))

    def _encode_chunk(self, model: SSPSAM, tokens: Tensor, probes: Tensor) -> _Encoding:
        tokens = tokens[:, : int((tokens != 0).sum(dim=1).max())].to(self.device)
        encoded = model.encode_phrase(tokens)
        patches = probes.expand(len(tokens), *probes.shape)
        attended = self.visual_adapter.attend_words(patches, encoded.phrase)
        return _Encoding(encoded.sentence_feature, encoded.phrase.phrase, attended)

    @torch.no_grad()
    def _read_scenes(self, predictor: Predictor, data: StickerDataset) -> Tensor:
        """Reads the scenes' phrases; returns (N, adapter dim) projected patches of some scenes."""
        rng = np.random.default_rng(self.config.seed)
        probes = []
        for number in range(min(SCENES, data.count)):
            scene, phrases = data.scene(number)
            self.phrases += [phrase.phrase for phrase in phrases]
            if number < PROBED_SCENES:
                features = predictor.embed(scene.image).patch_features
                encoded = self.teacher.encode_phrase(tokenize([phrases[0].phrase]).to(self.device))
                similarity = similarity_map(features, encoded.sentence_feature)
                patches = self.visual_adapter.patch_projection(features * similarity)[0]
                probes.append(patches[torch.from_numpy(rng.permutation(len(patches))[:PATCHES_PER_SCENE])])
        return torch.cat(probes)


def _relative_error(given: Tensor, wanted: Tensor) -> Tensor:
    """Squared error relative to the spread over the batch."""
    wanted = wanted.float()
    spread = wanted.var(dim=0).mean().clamp(min=1e-6)
    return F.mse_loss(given.float(), wanted) / spread
