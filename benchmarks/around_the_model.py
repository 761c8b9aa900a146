"""Overhead of a warm /predict outside the model: parsing, cache, masks, RLE, Redis, JSON.

ssp-sam-224 with random weights on the CPU (speed does not depend on them), without SAM's image encoder,
which a warm request does not use. The complete app with a real Redis, called through Flask's test client.

    python benchmarks/around_the_model.py [--requests 21] [--preset ssp-sam-224]
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import common.as_served  # noqa: F401 - before torch
import numpy as np
import torch
from common.sections import table, write_section
from common.serving import KEY, PROJECT, LabelStudioServer, redis_at
from torch import Tensor, nn

from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.settings import Settings
from backend.web.app import create_app
from sspsam import Predictor, build_model
from sspsam.presets import IMAGE_ENCODERS
from sspsam.results import Decoded, Question

SIZES = {"1 megapixel": (1000, 1000), "12 megapixels": (3000, 4000)}
MOST = {"1 megapixel": 0.10, "12 megapixels": 0.20}
BLOBS = 12
"""Cells per side of the noise from which the masks are made: ragged, with holes and several parts."""


class NoEncoder(nn.Module):
    """Replaces SAM's image encoder."""

    def __init__(self, name: str) -> None:
        super().__init__()
        config = IMAGE_ENCODERS[name]
        self.shape = (1, config.embedding_dim, config.embedding_size, config.embedding_size)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.zeros(self.shape)


class Timed(Predictor):
    """Sums the time in the networks; returns a ragged mask, which random weights may not produce."""

    model_s = 0.0

    def decode(self, questions: Sequence[Question]) -> list[Decoded]:
        since_s = time.perf_counter()
        decoded = super().decode(questions)
        self.model_s += time.perf_counter() - since_s
        noise = torch.randn(1, 1, BLOBS, BLOBS, generator=torch.Generator().manual_seed(0))
        side = decoded[0].mask_logits.shape[-1]
        grid = nn.functional.interpolate(noise, (side, side), mode="bicubic")[0, 0]
        return [Decoded(one.question, grid, 0.9, one.box_cxcywh) for one in decoded]


def body(task: dict[str, object], phrase: str) -> dict[str, object]:
    entry = {"id": "p", "from_name": "prompt", "to_name": "image", "type": "textarea"}
    return {
        "tasks": [{"id": task["id"], "data": task["data"]}],
        "project": f"{PROJECT}.1",
        "label_config": RECOMMENDED_CONFIG,
        "params": {"context": {"result": [{**entry, "value": {"text": [phrase]}}]}},
    }


def main() -> None:
    """Measures both sizes and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=21)
    parser.add_argument("--preset", default="ssp-sam-224")
    parser.add_argument("--profile", action="store_true", help="print a profile of the overhead")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = build_model(options.preset)
    predictor = Timed(model, NoEncoder(model.preset.image_encoder), options.preset, "cpu", second_look="off")
    rows, failed = [], False
    with (
        tempfile.TemporaryDirectory(prefix="sspsam-") as name,
        LabelStudioServer() as server,
        redis_at(Path(name)) as redis_url,
    ):
        settings = Settings(
            label_studio_url=server.url,
            label_studio_api_key=KEY,
            redis_url=redis_url,
            model_dir=Path(name) / "models",
            preset=options.preset,
            open_access=True,
        )
        app = create_app(settings, predictor=predictor)
        engine = app.extensions["sspsam"].engine
        engine.start()
        engine.wait(600)
        for number, (size, (height, width)) in enumerate(SIZES.items(), start=1):
            server.add_task(number, PROJECT, np.zeros((height, width, 3), np.uint8))
            task, client = server.tasks[number], app.test_client()
            profile = cProfile.Profile()
            client.post("/predict", json=body(task, "warm up")).get_data()
            shares, around_ms, sizes = [], [], []
            for request in range(options.requests):
                predictor.model_s = 0.0
                if options.profile:
                    profile.enable()
                since_s = time.perf_counter()
                data = client.post("/predict", json=body(task, f"thing {request}")).get_data()
                took_s = time.perf_counter() - since_s
                profile.disable()
                shares.append((took_s - predictor.model_s) / took_s)
                around_ms.append(1000 * (took_s - predictor.model_s))
                sizes.append(len(data))
            if options.profile:
                text = StringIO()
                pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(15)
                print(text.getvalue())
            share = float(np.median(shares))
            failed |= share > MOST[size]
            rows.append([size, f"{share:.3f}", MOST[size], f"{np.median(around_ms):.0f}", f"{max(sizes):,}"])
        engine.stop()
    head = ["image", "overhead share", "target: at most", "overhead ms", "response bytes"]
    write_section(
        "Overhead around the model",
        f"Share of a warm `/predict` request of {options.preset} (float32, CPU) that is spent outside the "
        "networks, including the wait for a batch. The mask is ragged, with holes and several parts.",
        table(head, rows),
    )
    if failed:
        raise SystemExit("the overhead around the model is above its target")


if __name__ == "__main__":
    main()
