"""Generalization of the demo weights to an unseen drawing style.

Runs the recipe of the demo weights from scratch without one style, in fewer steps, and evaluates the result
on scenes of the other styles and of that one. Takes hours; an interrupted run resumes when started again with
the same folder. Not part of `make bench`.

    python benchmarks/long/unseen_style.py --folder runs/unseen [--style fluent-flat] \
        [--steps clip=1400,sam=700,rec=700,ssp=1600] [--scenes 300]
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.sections import table, write_section

from finetune.cli.training import show_progress
from finetune.data.dataset import open_dataset
from finetune.data.stickers.art import STYLES
from finetune.evaluation.evaluate import EvaluationResult, evaluate
from finetune.evaluation.report import percent
from finetune.training.config import TrainConfig
from finetune.training.recipe import BUNDLE_NAME, PRESET, demo_stages
from finetune.training.train import train, write_bundle
from sspsam import Predictor


def main() -> None:
    """Trains the missing stages, evaluates the result, and prints both tables as one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--style", choices=STYLES, default="fluent-flat")
    parser.add_argument("--steps", default="clip=1400,sam=700,rec=700,ssp=1600")
    parser.add_argument("--scenes", type=int, default=300)
    options = parser.parse_args()
    steps = {stage: int(count) for stage, _, count in (p.partition("=") for p in options.steps.split(","))}
    seen = [style for style in STYLES if style != options.style]
    bundle = train_without(options.style, steps, options.folder)
    predictor = Predictor.from_preset(PRESET, "cpu", weights=bundle)
    results = [measure(predictor, styles, options.scenes) for styles in (seen, [options.style])]
    about = (
        f"The demo's recipe from scratch without {options.style}, shortened "
        f"({', '.join(f'{stage} {count}' for stage, count in steps.items())} steps), evaluated on "
        f"{options.scenes} scenes of the core nouns in the training styles and as many in the unseen style. "
        "In percent."
    )
    head = ("phrases", "mIoU, seen styles", "Pr@0.5", "mIoU, unseen style", "Pr@0.5", "all stickers", "N-acc")
    write_section("Unseen drawing style", about, table(head, rows(*results)))


def train_without(style: str, steps: dict[str, int], folder: Path) -> Path:
    """The weights bundle of the recipe's stages without one style, with the given steps per stage."""
    configs = [without(config, style, steps[config.stage]) for config in demo_stages(folder)]
    files = [train(config, show_progress(config)).weights for config in configs]
    bundle = folder / BUNDLE_NAME
    write_bundle(PRESET, files, bundle)
    return bundle


def without(config: TrainConfig, style: str, steps: int) -> TrainConfig:
    """A stage restricted to the other styles."""
    others = ",".join(other for other in STYLES if other != style)

    def narrow(data: str) -> str:
        return f"{data}{'&' if '?' in data else '?'}styles={others}"

    replay = None if config.replay is None else narrow(config.replay)
    return replace(config, data=narrow(config.data), replay=replay, steps=steps)


def measure(predictor: Predictor, styles: list[str], scenes: int) -> EvaluationResult:
    """Metrics on unseen scenes in the given styles."""
    data = f"stickers/val?count={scenes}&phrases=8&nouns=core&styles={','.join(styles)}"
    return evaluate(predictor, open_dataset(data))


def rows(seen: EvaluationResult, unseen: EvaluationResult) -> list[tuple[str, ...]]:
    """One row per family, and one for all."""
    made = []
    for family in [*seen.by_family, "all"]:
        here, there = (r.overall if family == "all" else r.by_family[family] for r in (seen, unseen))
        baselines = unseen.baselines if family == "all" else unseen.family_baselines[family]
        figures = here["mIoU"], here["Pr@0.5"], there["mIoU"], there["Pr@0.5"]
        trivial = baselines["all stickers"]["mIoU"], there["N-acc"]
        made.append((family, *map(percent, (*figures, *trivial))))
    return made


if __name__ == "__main__":
    main()
