"""Predictor: embed an image once, ask it about many phrases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sspsam import checkpoints, frames
from sspsam.files import sha256_of_file
from sspsam.frames import BoolMask, ClipFrame, Hw, UInt8Image
from sspsam.layouts import IMAGE_ENCODER_PREFIX
from sspsam.masks import mask_to_box_xyxy
from sspsam.model import SSPSAM, build_model
from sspsam.phrases import tokenize
from sspsam.presets import IMAGE_ENCODERS, base_preset, get_preset
from sspsam.prompts import Prompts
from sspsam.sam import build_image_encoder

NO_TARGET_MIN_FRACTION = 50 / 512**2
"""A mask covering less of the picture than this means that nothing fits (the paper: 50 px of 512 x 512)."""

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
TEST_SEED = 0


@dataclass(frozen=True)
class ImageEmbedding:
    """What depends on the image alone."""

    original_hw: Hw
    image_embedding: Tensor
    """(1, C, h, w): SAM's image encoder."""
    patch_features: Tensor
    """(1, G*G, D): CLIP's patches."""
    clip_frame: ClipFrame

    @property
    def size_bytes(self) -> int:
        """Memory that the tensors take."""
        return sum(tensor.nbytes for tensor in (self.image_embedding, self.patch_features))


@dataclass(frozen=True)
class Referent:
    """What a phrase refers to."""

    phrase: str
    mask: BoolMask
    """(H, W) in the original frame; all False when nothing fits."""
    score: float
    """The decoder's estimate of the mask's IoU, 0..1."""
    box_xyxy: tuple[float, float, float, float]
    """The REC head's answer, px of the original frame; without the head, the box around the mask."""
    no_target: bool
    """Nothing in the picture fits the phrase."""


class Predictor:
    """The model with its image encoder, on one device. Not safe to call from two threads at once."""

    def __init__(self, model: SSPSAM, image_encoder: nn.Module, preset: str, device: str = "auto") -> None:
        self.preset = preset
        self.device = choose_device(device)
        self.model = model.eval().to(self.device)
        self.image_encoder = image_encoder.eval().to(self.device)
        self._sam_side = IMAGE_ENCODERS[model.preset.image_encoder].image_size

    @classmethod
    def from_preset(cls, name: str, device: str = "auto", weights: Path | None = None) -> Predictor:
        """Loads a preset with its weights.

        Args:
            name: key of PRESETS.
            device: `cpu`, `cuda`, `cuda:1`, or `auto`: CUDA where there is one.
            weights: a safetensors file with the model's and the image encoder's tensors; without it, the
                weights that ship in the package.

        Raises:
            ValueError: there is no such preset.
            CheckpointError: no weights for it, or they do not fit.
        """
        preset = get_preset(name)
        path = weights or packaged_weights(name)
        if path is not None:
            return cls(*load_bundle(name, path), name, device)
        if base_preset(name) != "ssp-sam-test":
            raise checkpoints.CheckpointError(
                f"no weights for {name} ship in the package: give a converted file (sspsam weights convert)"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(TEST_SEED)
            model, image_encoder = build_model(name), build_image_encoder(preset.image_encoder)
        return cls(model, image_encoder, name, device)

    def load_trainable(self, state: Mapping[str, Tensor]) -> None:
        """Swaps fine-tuned tensors in. Image embeddings stay valid.

        Raises:
            CheckpointError: the tensors do not fit; the model is unchanged.
        """
        checkpoints.load_trainable(self.model, state)

    def trainable_state(self) -> dict[str, Tensor]:
        """A copy of the tensors that fine-tuning changes, on the CPU."""
        return {key: value.cpu().clone() for key, value in checkpoints.trainable_state(self.model).items()}

    @torch.inference_mode()
    def embed(self, image: UInt8Image) -> ImageEmbedding:
        """Encodes a picture.

        Args:
            image: (H, W, 3) uint8, RGB, upright.

        Raises:
            ValueError: of another shape or type.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(f"expected an (H, W, 3) uint8 image, got {image.shape} {image.dtype}")
        clip = self.model.preset.clip
        clip_image, clip_frame = frames.image_to_clip(image, clip.image_size, clip.centred)
        sam_image = frames.image_to_sam(image, self._sam_side)
        return ImageEmbedding(
            original_hw=clip_frame.original_hw,
            image_embedding=self.image_encoder(sam_image[None].to(self.device)),
            patch_features=self.model.encode_image(clip_image[None].to(self.device)),
            clip_frame=clip_frame,
        )

    @torch.inference_mode()
    def predict(
        self,
        embedding: ImageEmbedding,
        phrases: Sequence[str],
        points: npt.ArrayLike | None = None,
        boxes: npt.ArrayLike | None = None,
    ) -> list[Referent]:
        """Segments what each phrase refers to.

        Args:
            embedding: of the picture.
            phrases: referring expressions, at most 77 CLIP tokens each.
            points: (N, 3) x px, y px, 1 (part of it) or 0 (not part of it), original frame; for every phrase.
            boxes: (4,) xyxy px, original frame; for every phrase.

        Returns:
            One Referent per phrase, in order. Where somebody pointed at it, however small a mask is one.

        Raises:
            PhraseError: a phrase is empty or too long.
        """
        if not phrases:
            return []
        encoded = self.model.encode_phrase(tokenize(phrases).to(self.device))
        patch_features = embedding.patch_features.expand(len(phrases), -1, -1)
        prompts = self.model.make_prompts(patch_features, encoded)
        clicks = self._embed_clicks(embedding, points, boxes)
        return self._decode(embedding, phrases, prompts, clicks, _points_at_something(points, boxes))

    @torch.inference_mode()
    def segment(
        self,
        embedding: ImageEmbedding,
        points: npt.ArrayLike | None = None,
        boxes: npt.ArrayLike | None = None,
    ) -> Referent:
        """Segments what is pointed at, without a phrase: SAM alone.

        Args:
            embedding: of the picture.
            points: as for `predict`.
            boxes: as for `predict`.

        Returns:
            A Referent whose phrase is empty, and whose box is the mask's.

        Raises:
            ValueError: neither points nor a box.
        """
        clicks = self._embed_clicks(embedding, points, boxes)
        if clicks is None:
            raise ValueError("expected points or a box: without a phrase there is nothing else to go by")
        mask_logits, iou_predictions = self.model.sam(embedding.image_embedding, clicks)
        (mask,) = self._masks(mask_logits, embedding)
        score = float(iou_predictions.clamp(0, 1)[0])
        is_there = _points_at_something(points, boxes)
        return _referent("", mask, score, mask_to_box_xyxy(mask), self._is_empty(mask, score, is_there))

    def _decode(
        self,
        embedding: ImageEmbedding,
        phrases: Sequence[str],
        prompts: Prompts,
        clicks: Tensor | None,
        is_there: bool,
    ) -> list[Referent]:
        count = len(phrases)
        output = self.model.decode(
            embedding.image_embedding.expand(count, -1, -1, -1),
            prompts,
            None if clicks is None else clicks.expand(count, -1, -1),
        )
        masks = self._masks(output.mask_logits, embedding)
        scores = output.iou_predictions.clamp(0, 1).tolist()
        boxes_xyxy = (
            [mask_to_box_xyxy(mask) for mask in masks]
            if output.boxes is None
            else [embedding.clip_frame.box_to_original(box) for box in output.boxes.cpu()]
        )
        empty = [self._is_empty(mask, score, is_there) for mask, score in zip(masks, scores, strict=True)]
        return [_referent(*answer) for answer in zip(phrases, masks, scores, boxes_xyxy, empty, strict=True)]

    def _is_empty(self, mask: BoolMask, score: float, is_there: bool) -> bool:
        return says_nothing(mask, score, self.model.preset.min_score, is_there)

    def _masks(self, mask_logits: Tensor, embedding: ImageEmbedding) -> BoolMask:
        """(B, 1, h, h) logits as (B, H, W) masks of the original frame."""
        logits = frames.sam_logits_to_original(mask_logits, embedding.original_hw)
        masks: BoolMask = (logits > self.model.mask_threshold).cpu().numpy()
        return masks

    def _embed_clicks(
        self, embedding: ImageEmbedding, points: npt.ArrayLike | None, boxes: npt.ArrayLike | None
    ) -> Tensor | None:
        if points is None and boxes is None:
            return None
        coordinates, labels, corners = None, None, None
        if points is not None:
            array = np.asarray(points, np.float32).reshape(-1, 3)
            xy = frames.points_to_sam(array[:, :2], embedding.original_hw, self._sam_side)
            coordinates = xy[None].to(self.device)
            labels = torch.from_numpy(array[:, 2].astype(np.int64))[None].to(self.device)
        if boxes is not None:
            pair = np.asarray(boxes, np.float32).reshape(2, 2)
            xyxy = frames.points_to_sam(pair, embedding.original_hw, self._sam_side)
            corners = xyxy.reshape(1, 4).to(self.device)
        clicks = None if coordinates is None else (coordinates, labels)
        sparse, _ = self.model.sam.prompt_encoder(points=clicks, boxes=corners, masks=None)
        return sparse  # type: ignore[no-any-return]  # segment_anything is not typed


def packaged_weights(preset: str) -> Path | None:
    """The file of weights that ships with a preset, if one does."""
    name = get_preset(preset).weights
    return None if name is None else WEIGHTS_FOLDER / name


def frozen_weights(preset: str, weights: Path | None = None) -> dict[str, str]:
    """The weights that a fine-tune of the preset leaves as they are: file name -> sha256.

    Args:
        preset: Name of the preset.
        weights: The operator's own; None for those in the package. Without either, nothing is named.
    """
    path = weights or packaged_weights(preset)
    return {} if path is None else {path.name: sha256_of_file(path)}


def load_bundle(preset: str, path: Path) -> tuple[SSPSAM, nn.Module]:
    """Makes the model and its image encoder out of a file that holds both.

    The tensors are the file's own, mapped into memory: float32 weights exist once, and are read when they are
    used. The file must not be changed in place while they are; replacing it is fine.

    Args:
        preset: key of PRESETS.
        path: safetensors, the image encoder's tensors under `image_encoder.`.

    Raises:
        CheckpointError: it is missing, damaged, made for another preset, or does not fit.
    """
    if path.suffix != ".safetensors":
        raise checkpoints.CheckpointError(f"{path} is no safetensors file: sspsam weights convert makes one")
    state = checkpoints.read_tensors(path)
    made_for = checkpoints.read_metadata(path).get("preset", preset)
    if made_for != preset:
        raise checkpoints.CheckpointError(f"{path} was made for {made_for}, expected {preset}")
    encoder = {
        key.removeprefix(IMAGE_ENCODER_PREFIX): value
        for key, value in state.items()
        if key.startswith(IMAGE_ENCODER_PREFIX)
    }
    rest = {key: value for key, value in state.items() if not key.startswith(IMAGE_ENCODER_PREFIX)}
    with torch.device("meta"):
        model = build_model(preset)
        image_encoder = build_image_encoder(model.preset.image_encoder)
    checkpoints.load_strictly(image_encoder, encoder, assign=True)
    checkpoints.load_strictly(model, rest, assign=True)
    model.clip.restore_attention_mask()
    return model, image_encoder


def choose_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one, otherwise the CPU.

    Raises:
        ValueError: not a device that torch knows.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}, expected auto, cpu or cuda") from error


def _points_at_something(points: npt.ArrayLike | None, boxes: npt.ArrayLike | None) -> bool:
    """Whether somebody says that there is something: with a box, or with a point that is part of it."""
    if boxes is not None:
        return True
    return points is not None and bool((np.asarray(points, np.float32).reshape(-1, 3)[:, 2] > 0).any())


def says_nothing(mask: BoolMask, score: float, min_score: float, is_there: bool) -> bool:
    """Whether an answer says that nothing fits; what somebody points at is there, however small."""
    if is_there:
        return not mask.any()
    return bool(mask.mean() < NO_TARGET_MIN_FRACTION) or score < min_score


def _referent(
    phrase: str, mask: BoolMask, score: float, box_xyxy: tuple[float, float, float, float], no_target: bool
) -> Referent:
    return Referent(phrase, np.zeros_like(mask) if no_target else mask, score, box_xyxy, no_target)
