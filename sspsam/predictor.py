"""Predictor: embeds an image once and segments it by many phrases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sspsam.caching.embedding_files import digest_of_modules
from sspsam.checkpoints.bundles import load_bundle, packaged_weights
from sspsam.checkpoints.load import CheckpointError, load_trainable, trainable_state
from sspsam.checkpoints.notes import NO_NOTES, WeightsNotes, read_notes
from sspsam.checkpoints.variants import variant_of
from sspsam.decoding import QuestionDecoder
from sspsam.encoding import ImageEncoding, PreparedImage
from sspsam.images import frames
from sspsam.images.frames import ClipFrame, UInt8Image
from sspsam.images.masks import mask_to_box_xyxy
from sspsam.images.small_regions import without_small_regions
from sspsam.images.views import Window
from sspsam.looks.looking import PictureViewer, ViewCache, look_further
from sspsam.looks.second_look import LookRules, SecondLook, Viewer
from sspsam.modeling.model import SSPSAM, build_model
from sspsam.modeling.sam import build_image_encoder
from sspsam.objects.phrase_objects import objects_of
from sspsam.objects.splitting import Decode
from sspsam.phrases import tokenize
from sspsam.presets import IMAGE_ENCODERS, base_preset, get_preset
from sspsam.reading.reader import PhraseReader, Reading
from sspsam.results import Decoded, ImageEmbedding, Instance, Question, Referent, is_no_target, stability_of
from sspsam.runtime.bfloat16 import Precision
from sspsam.runtime.cores import Cores

TEST_SEED = 0
POINT_MARGIN = 1e-3
"""Logits by which the threshold is below those of points that a mask must include: more than rounding."""


class Predictor:
    """The model with its image encoder, on one device. `embed` and `decode` may run concurrently.

    Neither may be called by two threads at once, nor `decode` during `load_trainable`. `variant` may run at
    any time.
    """

    def __init__(
        self,
        model: SSPSAM,
        image_encoder: nn.Module,
        preset: str,
        device: str = "auto",
        image_precision: Precision = "float32",
        second_look: SecondLook = "auto",
        notes: WeightsNotes = NO_NOTES,
        phrase_precision: Precision = "float32",
    ) -> None:
        if second_look not in get_args(SecondLook):
            raise ValueError(f"second_look is {second_look!r}, expected auto, off or always")
        self.preset = preset
        self.image_precision = image_precision
        self.device = choose_device(device)
        self.model = model.eval().to(self.device)
        self.image_encoder = image_encoder.eval().to(self.device)
        self._sam_side = IMAGE_ENCODERS[model.preset.image_encoder].image_size
        self.notes = notes
        cores = Cores()
        self._encoding = ImageEncoding(self.model, self.image_encoder, self.device, cores, image_precision)
        self._decoder = QuestionDecoder(self.device, cores, PhraseReader(notes.known_words), phrase_precision)
        self._views = ViewCache()
        image_encoder_config = IMAGE_ENCODERS[model.preset.image_encoder]
        self.look_rules = LookRules(
            second_look,
            model.mask_threshold,
            model.preset.min_presence,
            shrinks_close_ups=not getattr(image_encoder_config, "global_attention_blocks", True),
        )

    @classmethod
    def from_preset(
        cls,
        name: str,
        device: str = "auto",
        weights: Path | None = None,
        image_precision: Precision = "float32",
        second_look: SecondLook = "auto",
        phrase_precision: Precision = "float32",
    ) -> Predictor:
        """Loads a preset with its weights.

        Args:
            name: key of PRESETS.
            device: `cpu`, `cuda`, `cuda:1`, or `auto`: CUDA if available.
            weights: a safetensors file with the tensors of model and image encoder; default: the packaged
                weights.
            image_precision: precision of SAM's image encoder; its embeddings are float32 in any case.
            second_look: When masks are sharpened: see `sspsam.looks.second_look`.
            phrase_precision: precision of everything that answers phrases and clicks on an embedded image.

        Raises:
            ValueError: unknown preset or precision.
            CheckpointError: there are no weights for it, or they do not fit.
        """
        preset = get_preset(name)
        path = weights or packaged_weights(name)
        if path is not None:
            loaded, notes = load_bundle(name, path), read_notes(path)
            return cls(*loaded, name, device, image_precision, second_look, notes, phrase_precision)
        if base_preset(name) != "ssp-sam-test":
            raise CheckpointError(
                f"the package contains no weights for {name}: give a converted file (sspsam weights convert)"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(TEST_SEED)
            model, image_encoder = build_model(name), build_image_encoder(preset.image_encoder)
        return cls(
            model, image_encoder, name, device, image_precision, second_look, NO_NOTES, phrase_precision
        )

    def load_trainable(self, state: Mapping[str, Tensor]) -> None:
        """Loads fine-tuned tensors. Image embeddings stay valid.

        Raises:
            CheckpointError: the tensors do not fit; the model is unchanged.
        """
        load_trainable(self.model, state)

    def variant(self, state: Mapping[str, Tensor]) -> SSPSAM:
        """A model for `decode` with other trainable tensors; frozen parts and embeddings are shared.

        Raises:
            CheckpointError: the tensors do not fit.
        """
        return variant_of(self.model, state)

    def trainable_state(self) -> dict[str, Tensor]:
        """A copy of the trainable tensors, on the CPU."""
        return {key: value.cpu().clone() for key, value in trainable_state(self.model).items()}

    def embed(self, image: UInt8Image) -> ImageEmbedding:
        """Encodes an image.

        Args:
            image: (H, W, 3) uint8, RGB, upright.

        Raises:
            ValueError: wrong shape or dtype.
        """
        return self.encode([self.prepare(image)])[0]

    def prepare(self, image: UInt8Image) -> PreparedImage:
        """The first half of `embed`, of which a device is no part. Thread-safe."""
        return self._encoding.prepare(image)

    def encode(self, images: Sequence[PreparedImage]) -> list[ImageEmbedding]:
        """The second half of `embed`, for several images together; a GPU is filled by a few of them."""
        return self._encoding.encode(images)

    def embed_views(self, image: UInt8Image, windows: Sequence[Window]) -> list[ImageEmbedding]:
        """Encodes views of an image by SAM alone, for questions without a phrase.

        Args:
            image: As for `embed`.
            windows: Each overlaps the image.

        Returns:
            Embeddings in the views' own frames.
        """
        return self._encoding.encode_views(image, windows)

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> ImageEmbedding:
        """Restores an embedding from `ImageEmbedding.to_tensors` on this device.

        Raises:
            KeyError: a tensor is missing.
        """
        frame = ClipFrame.from_tensor(tensors["clip_frame"])
        image_embedding, patch_features = (
            tensors[name].to(self.device).float() for name in ("image_embedding", "patch_features")
        )
        return ImageEmbedding(frame.original_hw, image_embedding, patch_features, frame)

    @cached_property
    def encoders_digest(self) -> str:
        """Hex sha256 of everything that image embeddings depend on; excludes fine-tuned weights."""
        clip = self.model.preset.clip
        sizes = f"{clip.image_size} {clip.centred} {clip.surgery_blocks} {self._sam_side}"
        exactness = "" if self.image_precision == "float32" else f" {self.image_precision}"
        return digest_of_modules(self.image_encoder, self.model.clip.towers.visual, also=sizes + exactness)

    def predict(
        self,
        embedding: ImageEmbedding,
        phrases: Sequence[str],
        points: npt.ArrayLike | None = None,
        boxes: npt.ArrayLike | None = None,
        image: UInt8Image | None = None,
    ) -> list[Referent]:
        """Segments the referent of each phrase.

        Args:
            embedding: of the image.
            phrases: referring expressions, at most 77 CLIP tokens each.
            points: (N, 3) x px, y px, 1 (foreground) or 0 (background), original frame; for every phrase.
            boxes: (4,) xyxy px, original frame; for every phrase.
            image: as for `embed`; with it, masks are improved by further looks (`sspsam.looks`).

        Returns:
            One Referent per phrase, in order. With positive clicks, masks of any size are kept.

        Raises:
            PhraseError: a phrase is empty or too long.
        """
        tokenize(phrases)
        questions = [Question(embedding, phrase, points, boxes) for phrase in phrases]
        referents = self._answers(questions, image)
        if points is not None or boxes is not None:
            return referents
        return [
            replace(referent, find_instances=partial(self.split, embedding, referent))
            for referent in referents
        ]

    def split(
        self, embedding: ImageEmbedding, referent: Referent, decode: Decode | None = None
    ) -> list[Instance]:
        """Splits the mask of a referent into its objects, by the rule of `sspsam.objects.phrase_objects`.

        Thread-safe if `decode` is.

        Args:
            embedding: of the image.
            referent: of a phrase in it.
            decode: Replaces `self.decode`.
        """
        return objects_of(embedding, referent, decode or self.decode, self.finish)

    def segment(
        self,
        embedding: ImageEmbedding,
        points: npt.ArrayLike | None = None,
        boxes: npt.ArrayLike | None = None,
        image: UInt8Image | None = None,
    ) -> Referent:
        """Segments by clicks without a phrase: plain SAM.

        Args:
            embedding: of the image.
            points: as for `predict`.
            boxes: as for `predict`.
            image: as for `predict`.

        Returns:
            A Referent with an empty phrase and the mask's box.

        Raises:
            ValueError: neither points nor a box.
        """
        return self._answers([Question(embedding, "", points, boxes)], image)[0]

    def _answers(self, questions: Sequence[Question], image: UInt8Image | None) -> list[Referent]:
        """Answers to questions about one image, with further looks if it is given."""
        decoded = self.decode(questions)
        referents = [self.finish(answer) for answer in decoded]
        if image is None or not questions:
            return referents
        viewer = PictureViewer(self, image, questions[0].embedding, self._views, self.decode)
        return self.look_further(referents, decoded, viewer)

    def look_further(
        self, referents: Sequence[Referent], decoded: Sequence[Decoded], viewer: Viewer
    ) -> list[Referent]:
        """Improves answers about a picture by further looks (`sspsam.looks`). Thread-safe if the viewer is.

        Args:
            referents: First answers.
            decoded: The same, as decoded.
            viewer: Runs the networks on parts of the picture.
        """
        return look_further(referents, decoded, viewer, self.look_rules)

    def decode(
        self, questions: Sequence[Question], models: Sequence[SSPSAM | None] | None = None
    ) -> list[Decoded]:
        """Runs the networks; images and models may differ.

        Args:
            questions: Any number.
            models: As from `variant`, one per question; None: the predictor's own.

        Raises:
            PhraseError: a phrase is too long.
            ValueError: neither a phrase nor clicks.
        """
        chosen = [model or self.model for model in models or [None] * len(questions)]
        return self._decoder.decode(list(zip(chosen, questions, strict=True)))

    def read(self, phrase: str, model: SSPSAM | None = None) -> Reading:
        """What the model is asked for a typed phrase. Thread-safe."""
        return self._decoder.read(phrase, model or self.model)

    def finish(self, decoded: Decoded, min_speck: float = 0.0, min_presence: float | None = None) -> Referent:
        """Resizes the networks' output to the image. Thread-safe.

        Args:
            decoded: From `decode`.
            min_speck: Parts and holes of the mask below this share of the image are removed, unless nothing
                would remain.
            min_presence: Probability of a target below which the answer is empty; None: the preset's. Masks
                of a lower probability than the preset's are marked as unsure.
        """
        question, embedding = decoded.question, decoded.question.embedding
        logits = decoded.mask_logits.numpy()
        threshold = self._threshold(question, logits)
        if min_speck > 0 and not question.includes_points:
            logits = without_small_regions(
                logits, threshold, min_speck * frames.cells(embedding.original_hw, logits)
            )
        mask = frames.sam_logits_to_mask(logits, embedding.original_hw, threshold)
        box_xyxy = (
            mask_to_box_xyxy(mask)
            if decoded.box_cxcywh is None
            else embedding.clip_frame.box_to_original(decoded.box_cxcywh)
        )
        usual = self.model.preset.min_presence
        least = usual if min_presence is None else min(min_presence, usual)
        asserted, presence = question.has_positive_click, decoded.presence
        no_target = is_no_target(mask, presence, least, asserted)
        stability = stability_of(decoded.mask_logits.numpy(), self.model.mask_threshold)
        return Referent(
            question.phrase,
            np.zeros_like(mask) if no_target else mask,
            decoded.score,
            box_xyxy,
            no_target,
            stability,
            expected_iou=self.notes.expected_iou(
                None if question.has_clicks else presence, decoded.score, stability, no_target
            ),
            is_unsure=not no_target and is_no_target(mask, presence, usual, asserted),
            reading=decoded.reading,
        )

    def _threshold(self, question: Question, logits: npt.NDArray[np.float32]) -> float:
        """The logit above which pixels are mask."""
        threshold = self.model.mask_threshold
        if not question.includes_points or question.points is None:
            return threshold
        points = np.asarray(question.points, np.float32).reshape(-1, 3)
        positive = points[points[:, 2] > 0, :2]
        if not len(positive):
            return threshold
        lowest = frames.lowest_sam_logit(logits, question.embedding.original_hw, positive)
        return min(threshold, lowest - POINT_MARGIN)


def choose_device(device: str) -> torch.device:
    """`auto` is CUDA if available, otherwise the CPU.

    Raises:
        ValueError: not a device known to torch.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}, expected auto, cpu or cuda") from error
