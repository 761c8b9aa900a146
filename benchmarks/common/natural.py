"""The natural phrases of tests/data, as a data set."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from finetune.data.sample import Sample
from finetune.data.stickers.scenes import Scene, make_scene

FILE = Path(__file__).parents[2] / "tests" / "data" / "natural_phrases.tsv"
FIRST_SEED = 22_000_000
SIZE_RANGE_PX = (320, 640)


@dataclass(frozen=True)
class NaturalPhrase:
    """One row of the file."""

    scene: int
    targets: tuple[int, ...]
    group: str
    phrase: str


def read_phrases(file: Path = FILE) -> list[NaturalPhrase]:
    """Reads the file."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [
        NaturalPhrase(int(row["scene"]), _indices(row["targets"]), row["group"], row["phrase"])
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    ]


def _indices(text: str) -> tuple[int, ...]:
    return () if text == "-" else tuple(int(part) for part in text.split(","))


@lru_cache(2)
def draw_scene(number: int) -> Scene:
    """The scene of a row."""
    return make_scene(FIRST_SEED + number, "val", size_range=SIZE_RANGE_PX)


class NaturalPhrases:
    """The phrases with their scenes; their group is the samples' family."""

    def __init__(self, phrases: list[NaturalPhrase] | None = None) -> None:
        self.phrases = read_phrases() if phrases is None else phrases

    def __len__(self) -> int:
        return len(self.phrases)

    def __getitem__(self, index: int) -> Sample:
        row = self.phrases[index]
        scene = draw_scene(row.scene)
        return Sample(
            sample_id=f"natural/{row.scene}/{index}",
            image_id=f"natural/{row.scene}",
            image=scene.image,
            phrase=row.phrase,
            mask=scene.mask_of(row.targets),
            family=row.group,
        )
