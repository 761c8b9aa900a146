"""A predictor with predictable answers: a phrase means the pixels of the colour that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image

from backend.images.store import UInt8Image
from sspsam import Instance, Referent
from sspsam.images.masks import BoolMask, mask_to_box_xyxy
from sspsam.results import Question

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}
SCORE = 0.75


@dataclass(frozen=True)
class Pixels:
    """An image embedding that has lost nothing."""

    image: UInt8Image

    @property
    def original_hw(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]

    @property
    def size_bytes(self) -> int:
        return self.image.nbytes

    def rounded(self) -> Pixels:
        return self

    def to_tensors(self) -> dict[str, torch.Tensor]:
        return {"image": torch.from_numpy(self.image)}


class ColourPredictor:
    """Finds the colour that a phrase names; a phrase without one, or whose colour is not there, fits nothing.

    Its one trainable number, `shift`, moves masks down by that number of rows.
    """

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"shift": np.array(0)}
        self.embedded = 0
        self.asked: list[str] = []
        self.batches: list[int] = []
        """How many were asked together, each time."""

    def embed(self, image: UInt8Image) -> Pixels:
        self.embedded += 1
        return Pixels(image)

    def prepare(self, image: UInt8Image) -> UInt8Image:
        return image

    def encode(self, images: Sequence[UInt8Image]) -> list[Pixels]:
        return [self.embed(image) for image in images]

    def decode(self, questions: Sequence[Question], models: Sequence[Any] | None = None) -> list[Referent]:
        self.asked += [question.phrase for question in questions]
        self.batches.append(len(questions))
        states = models or [None] * len(questions)
        return [
            self._answer(question, state or self.state)
            for question, state in zip(questions, states, strict=True)
        ]

    def finish(
        self, decoded: Referent, min_speck: float = 0.0, min_presence: float | None = None
    ) -> Referent:
        return decoded

    def embed_views(self, image: UInt8Image, windows: Sequence[object]) -> list[Any]:
        raise AssertionError("its masks need no second look")

    def look_further(
        self, referents: Sequence[Referent], decoded: Sequence[Referent], viewer: object
    ) -> list[Referent]:
        return list(referents)

    def split(self, embedding: Pixels, referent: Referent, decode: object) -> list[Instance]:
        return [Instance(referent.mask, referent.score)]

    def from_tensors(self, tensors: Mapping[str, Any]) -> Pixels:
        return Pixels(tensors["image"].numpy())

    @property
    def encoders_digest(self) -> str:
        return "c0" * 32

    def _answer(self, question: Question, state: Mapping[str, Any]) -> Referent:
        image = question.embedding.image
        if question.phrase:
            mask = self._find(image, question.phrase, int(state["shift"]))
        else:
            mask = np.full(image.shape[:2], question.boxes is not None, dtype=np.bool_)
        if question.has_clicks:
            mask = pointed_at(image, mask, question.points, question.boxes)
        return as_referent(question.phrase, mask)

    def variant(self, state: Mapping[str, Any]) -> dict[str, Any]:
        if set(state) != {"shift"}:
            raise ValueError(f"the tensors do not fit the model: {sorted(state)}")
        return dict(state)

    def _find(self, image: UInt8Image, phrase: str, shift: int) -> BoolMask:
        mask = np.zeros(image.shape[:2], dtype=np.bool_)
        for word in phrase.lower().split():
            if word in COLOURS:
                mask |= (image == COLOURS[word]).all(axis=2)
        return np.roll(mask, shift, axis=0)


def as_referent(phrase: str, mask: BoolMask) -> Referent:
    return Referent(phrase, mask, SCORE, mask_to_box_xyxy(mask), no_target=not mask.any())


def pointed_at(image: UInt8Image, mask: BoolMask, points: Any, boxes: Any) -> BoolMask:
    """The mask within the box, with the colours of positive points and without those of negative ones."""
    mask = mask.copy()
    if boxes is not None:
        inside = np.zeros_like(mask)
        x0, y0, x1, y1 = (round(float(side)) for side in boxes)
        inside[y0:y1, x0:x1] = True
        mask &= inside
    for x, y, part in [] if points is None else points:
        row, column = min(int(y), image.shape[0] - 1), min(int(x), image.shape[1] - 1)
        same = (image == image[row, column]).all(axis=2)
        mask = mask | same if part else mask & ~same
    return mask


def picture(height: int = 40, width: int = 60) -> UInt8Image:
    """White, with a red square that has a hole, and a blue bar at the right border."""
    image = np.full((height, width, 3), 255, dtype=np.uint8)
    image[5:25, 10:30] = COLOURS["red"]
    image[10:15, 15:20] = 255
    image[:, -8:] = COLOURS["blue"]
    return image


def encoded(image: UInt8Image, kind: str = "PNG", **options: Any) -> bytes:
    """The image as a file."""
    file = BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()
