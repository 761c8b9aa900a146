"""Uncertain tasks first against random order: mIoU of a new class by number of labels, simulated.

A pool of scenes with one new noun. In every round, an order chooses tasks; the shipped weights are fine-tuned
on the true masks of all tasks chosen so far and evaluated on fresh scenes. Both orders share the pool, the
settings, the fresh scenes and a random first round.

    python benchmarks/labelling_order.py [--seeds 5] [--pool 30] [--rounds 3] [--labels 5] [--steps 30]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from common.kept import KeepingPredictor, KeptDataset
from common.novel import CORRECTED_SPLIT, FRESH_SPLIT, NovelDataset, NovelScene, novel_scenes
from common.sections import table, write_section

from finetune.data.augmentation import VariedDataset
from finetune.data.dataset import open_dataset
from finetune.data.sample import Dataset
from finetune.evaluation.evaluate import evaluate
from finetune.training.config import TrainConfig
from finetune.training.loop import TrainingLoop
from finetune.training.stages.ssp import SSPStage
from sspsam import ImageEmbedding, Predictor
from worker.finetuning.recipes import RECIPES
from worker.projects.active_learning import learning_scores

PRESET = "ssp-sam-demo"
NOUNS = ("koala", "guitar", "umbrella", "castle", "pizza")
RECIPE = RECIPES[PRESET]


@dataclass(frozen=True, eq=False)
class Asked:
    """A task of the pool with its image embedding."""

    scene: NovelScene
    embedding: ImageEmbedding


class Simulation:
    """One pool, for both orders.

    Args:
        predictor: Predictor with the shipped weights, which are restored afterwards.
        replay: Data set of the earlier training.
        seed: Selects the noun, the pool's order and the first round.
        pool: Number of scenes in the pool.
        fresh: Number of scenes for the evaluation.
        steps: Steps of each fine-tune.
    """

    def __init__(
        self, predictor: Predictor, replay: Dataset, seed: int, pool: int, fresh: int, steps: int
    ) -> None:
        self.predictor = predictor
        self.replay = replay
        self.base = predictor.trainable_state()
        self.order = np.random.default_rng(seed).permutation(pool).tolist()
        noun = NOUNS[seed % len(NOUNS)]
        scenes = list(islice(novel_scenes(noun, CORRECTED_SPLIT), pool))
        self.pool = [Asked(scene, predictor.embed(scene.image)) for scene in scenes]
        self.fresh = NovelDataset(list(islice(novel_scenes(noun, FRESH_SPLIT), fresh)))
        self.steps = steps

    def curves(self, rounds: int, labels: int) -> tuple[list[float], list[float]]:
        """Returns the mIoU after each round, in our order and in random order; both share the first round."""
        first = [self.learn(self.order[:labels])]
        learned = self.predictor.trainable_state()
        ours = first + self.go_on(True, rounds, labels)
        self.predictor.load_trainable(learned)
        others = first + self.go_on(False, rounds, labels)
        self.predictor.load_trainable(self.base)
        return ours, others

    def go_on(self, uncertain: bool, rounds: int, labels: int) -> list[float]:
        """Returns the mIoU after each round but the first."""
        chosen, scores = self.order[:labels], []
        for _ in range(rounds - 1):
            left = [place for place in self.order if place not in chosen]
            chosen = [*chosen, *(self.most_uncertain(left) if uncertain else left)[:labels]]
            scores.append(self.learn(chosen))
        return scores

    def most_uncertain(self, places: Sequence[int]) -> list[int]:
        """Order of `sspsam rank`."""
        asked = [self.pool[place] for place in places]
        answers = [self.predictor.predict(one.embedding, [one.scene.phrase])[0] for one in asked]
        certainties = np.array([answer.certainty for answer in answers], np.float32)
        scores = learning_scores(certainties, np.stack([one.embedding.descriptor for one in asked]))
        return [places[place] for place in scores.argsort(kind="stable").tolist()]

    def learn(self, places: Sequence[int]) -> float:
        """Fine-tunes the shipped weights with the worker's settings; returns the resulting mIoU."""
        self.predictor.load_trainable(self.base)
        scenes = NovelDataset([self.pool[place].scene for place in places])
        with tempfile.TemporaryDirectory() as folder:
            config = TrainConfig(
                PRESET, Path(folder), steps=self.steps, checkpoint_every=self.steps, **RECIPE.settings()
            )
            stage = SSPStage(
                self.predictor, config, VariedDataset(scenes, RECIPE.views(len(scenes))), self.replay
            )
            TrainingLoop(stage, config, self.predictor.device).run()
        self.predictor.model.eval()
        return float(evaluate(self.predictor, self.fresh).overall["mIoU"] or 0.0)


def main() -> None:
    """Simulates and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pool", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--labels", type=int, default=5, help="labels per round")
    parser.add_argument("--steps", type=int, default=30, help="steps per fine-tune")
    parser.add_argument("--fresh", type=int, default=30)
    options = parser.parse_args()
    predictor = KeepingPredictor.from_preset(PRESET, "cpu")
    replay = KeptDataset(open_dataset(str(RECIPE.replay)))
    curves: dict[bool, list[list[float]]] = {True: [], False: []}
    for seed in range(options.seeds):
        since_s = time.monotonic()
        simulation = Simulation(predictor, replay, seed, options.pool, options.fresh, options.steps)
        for uncertain, curve in zip(curves, simulation.curves(options.rounds, options.labels), strict=True):
            curves[uncertain].append(curve)
        print(seed, curves[True][-1], curves[False][-1], f"{time.monotonic() - since_s:.0f} s", flush=True)
    rows = []
    for turn in range(options.rounds):
        ours, others = (np.array([curve[turn] for curve in curves[which]]) for which in (True, False))
        rows.append(
            [
                (turn + 1) * options.labels,
                f"{ours.mean():.3f}",
                f"{others.mean():.3f}",
                f"{(ours - others).mean():+.3f} ± {2 * (ours - others).std() / np.sqrt(len(ours)):.3f}",
            ]
        )
    write_section(
        "Labelling order",
        f"mIoU on {options.fresh} unseen scenes of a class that `{PRESET}` was not trained on, after "
        f"{options.steps} steps on the given number of corrections from a pool of {options.pool}. Means over "
        f"{options.seeds} seeds, with two standard errors of the difference. Both orders share the first "
        f"{options.labels} corrections.",
        table(["corrections", "`sspsam rank`", "random order", "difference"], rows),
    )


if __name__ == "__main__":
    main()
