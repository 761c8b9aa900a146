"""Seconds per picture and per further question: SSP-SAM beside other models that one might serve.

Random weights, on which speed does not depend, in float32. The other models are in the default configurations
of transformers, which are those of published checkpoints; every model gets input of the size that it was
trained on, already resized. Each runs in its own process: ours with the settings of `sspsam serve`. A round
goes through all models, so that other load affects them equally.

    make alternatives
    .venv-consumers/bin/python benchmarks/alternatives.py [--rounds 2] [--questions 3] [--only "SAM 3"]

The interfaces of Grounding DINO and CLIPSeg keep nothing of a picture, and look at it again for each phrase.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

from common.sections import table, write_section

PHRASE_TOKENS = 8
"""Of a referring phrase of about six words, with start and end."""
OURS = "ssp-sam-"
LIBRARY = "transformers"


class Model(NamedTuple):
    """What is measured of a model."""

    picture: Callable[[int], Any]
    """Computes what the model keeps of a picture, given its number; the pixels, if it keeps nothing."""
    question: Callable[[Any, int], object]
    """Answers a question about it, given its number."""
    parameters: int


@dataclass(frozen=True)
class Alternative:
    """A row of the table."""

    name: str
    made: Callable[[], Model]
    asked: str
    answer: str


@dataclass(frozen=True)
class Took:
    """What a model took in one round."""

    picture_s: float
    """From an unknown picture to the first answer."""
    question_s: float
    """Another answer about the same picture, median."""
    peak_mib: float
    parameters: int


def ours(name: str) -> Model:
    """SSP-SAM as served, without HTTP and without second looks."""
    import common.as_served  # noqa: F401 - before torch
    import numpy as np
    import torch

    from sspsam import Predictor, build_image_encoder, build_model

    torch.manual_seed(0)
    model = build_model(name)
    encoder = build_image_encoder(model.preset.image_encoder)
    predictor = Predictor(model, encoder, name, "cpu", second_look="off")
    rng = np.random.default_rng(0)

    def picture(number: int) -> Any:
        return predictor.embed(rng.integers(0, 256, (768, 1024, 3), dtype=np.uint8))

    def question(embedding: Any, number: int) -> object:
        return predictor.predict(embedding, [f"the red cup number {number} on the left"])

    return Model(picture, question, _parameters(model) + _parameters(encoder))


def sam3() -> Model:
    """Phrases and boxes to masks of all instances."""
    import torch
    from transformers import Sam3Config, Sam3Model

    model = _made(Sam3Model, Sam3Config())
    side = model.config.vision_config.image_size
    words = model.config.text_config.vocab_size

    def picture(number: int) -> Any:
        return model.get_vision_features(_pixels((side, side), number))

    def question(kept: Any, number: int) -> object:
        ids = _ids(words, number)
        return model(vision_embeds=kept, input_ids=ids, attention_mask=torch.ones_like(ids))

    return Model(picture, question, _parameters(model))


def sam2() -> Model:
    """Points to masks."""
    import torch
    from transformers import Sam2Config, Sam2Model

    model = _made(Sam2Model, Sam2Config())
    side = model.config.prompt_encoder_config.image_size

    def picture(number: int) -> Any:
        return model.get_image_embeddings(_pixels((side, side), number))

    def question(kept: Any, number: int) -> object:
        point = torch.tensor([[[[float(number + 1), float(number + 1)]]]])
        inside = torch.ones(1, 1, 1, dtype=torch.long)
        return model(image_embeddings=kept, input_points=point, input_labels=inside)

    return Model(picture, question, _parameters(model))


def grounding_dino() -> Model:
    """Phrases to boxes."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    return _keeps_nothing(_made(GroundingDinoForObjectDetection, GroundingDinoConfig()), (800, 1066))


def clipseg() -> Model:
    """Phrases to coarse masks."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    return _keeps_nothing(_made(CLIPSegForImageSegmentation, CLIPSegConfig()), (352, 352))


def _keeps_nothing(model: Any, hw: tuple[int, int]) -> Model:
    """A model that takes picture and phrase together."""
    import torch

    words = model.config.text_config.vocab_size

    def question(pixels: Any, number: int) -> object:
        ids = _ids(words, number)
        return model(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids))

    return Model(lambda number: _pixels(hw, number), question, _parameters(model))


PHRASE, MASK = "a phrase", "one mask"
ALTERNATIVES = {
    one.name: one
    for one in (
        Alternative("ssp-sam-224", lambda: ours("ssp-sam-224"), PHRASE, MASK),
        Alternative("ssp-sam-224-with-vit_b", lambda: ours("ssp-sam-224-with-vit_b"), PHRASE, MASK),
        Alternative("ssp-sam-224-with-mobile", lambda: ours("ssp-sam-224-with-mobile"), PHRASE, MASK),
        Alternative("ssp-sam-336-with-mobile", lambda: ours("ssp-sam-336-with-mobile"), PHRASE, MASK),
        Alternative("SAM 3", sam3, PHRASE, "a mask per instance"),
        Alternative("SAM 2 (tiny)", sam2, "a click", "three masks"),
        Alternative("Grounding DINO", grounding_dino, PHRASE, "boxes"),
        Alternative("CLIPSeg", clipseg, PHRASE, "one mask of 352 px"),
    )
}


def measure(name: str, questions: int, number: int) -> Took:
    """Times one picture and the questions about it, after a first picture that is not counted."""
    import torch

    if not name.startswith(OURS):
        torch.set_num_threads(os.cpu_count() or 1)
    model = ALTERNATIVES[name].made()
    with torch.inference_mode():
        model.question(model.picture(0), 0)  # allocates, packs, chooses
        since_s = time.perf_counter()
        kept = model.picture(number + 1)
        model.question(kept, 0)
        first_s = time.perf_counter() - since_s
        times_s = []
        for further in range(questions):
            since_s = time.perf_counter()
            model.question(kept, further + 1)
            times_s.append(time.perf_counter() - since_s)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Took(first_s, statistics.median(times_s), peak_mib, model.parameters)


def main() -> None:
    """Measures each model in its own process, in rounds, and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--questions", type=int, default=3, help="further questions about a picture")
    parser.add_argument("--only", default="", help="names of rows, separated by commas")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(asdict(measure(options.one, options.questions, options.number))))
        return
    names = [name for name in ALTERNATIVES if not options.only or name in options.only.split(",")]
    found: dict[str, list[Took]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names:
            found[name].append(_measured_apart(name, options.questions, number))
            print(f"round {number + 1}: {name}: {found[name][-1]}", flush=True)
    write_section("Other models", *_paragraphs(found, options.rounds, options.questions))


def _measured_apart(name: str, questions: int, number: int) -> Took:
    command = [sys.executable, __file__, "--one", name]
    command += ["--questions", str(questions), "--number", str(number)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Took(**json.loads(done.stdout.splitlines()[-1]))


def _paragraphs(found: dict[str, list[Took]], rounds: int, questions: int) -> list[str]:
    rows = []
    for name, runs in found.items():
        row, parameters = ALTERNATIVES[name], runs[0].parameters / 1e6
        picture_s = statistics.median(run.picture_s for run in runs)
        question_s = statistics.median(run.question_s for run in runs)
        peak_mib = max(run.peak_mib for run in runs)
        figures = (f"{parameters:.0f}", f"{picture_s:.2f}", f"{question_s:.2f}", f"{peak_mib:.0f}")
        rows.append([name, row.asked, row.answer, *figures])
    head = ["model", "is asked", "answers with", "million parameters", "picture and first answer, s"]
    return [
        f"Random weights, float32, {os.cpu_count()} cores, {LIBRARY} {version(LIBRARY)}; medians of {rounds} "
        f"rounds with {questions} further questions each. Speed and memory only: random weights say nothing "
        "about masks. Input sizes are those of published checkpoints. Grounding DINO and CLIPSeg look at the "
        "picture again for each phrase.",
        table([*head, "further answer, s", "peak MiB"], rows),
    ]


def _made(kind: Any, config: Any) -> Any:
    """The model with random weights, for inference."""
    return kind(config).eval()


def _pixels(hw: tuple[int, int], seed: int) -> Any:
    import torch

    return torch.randn(1, 3, *hw, generator=torch.Generator().manual_seed(seed))


def _ids(words: int, seed: int) -> Any:
    """(1, PHRASE_TOKENS) tokens of a phrase; the largest is the end, as in CLIP's vocabulary."""
    import torch

    ids = torch.randint(1000, words - 2, (1, PHRASE_TOKENS), generator=torch.Generator().manual_seed(seed))
    ids[0, 0], ids[0, -1] = words - 2, words - 1
    return ids


def _parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
