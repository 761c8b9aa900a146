"""Fine-tuning with cached SAM image embeddings, against encoding the images in every step.

The same steps three times, each in its own process: without a cache, filling it, and with the filled cache.
Random weights if none ship; speed does not depend on them.

    python benchmarks/kept_embeddings.py [--presets ssp-sam-demo ssp-sam-224-with-vit_b] [--steps 4]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common.sections import table, write_section

PRESETS = {"ssp-sam-demo": 32, "ssp-sam-224-with-vit_b": 2}
"""Preset -> samples per step."""


def random_weights(preset: str, folder: Path) -> Path | None:
    """A file of weights; None if the preset's own ship."""
    from sspsam import build_image_encoder, build_model
    from sspsam.checkpoints.bundles import packaged_weights
    from sspsam.checkpoints.load import write_tensors
    from sspsam.presets import get_preset

    if packaged_weights(preset) is not None:
        return None
    encoder = build_image_encoder(get_preset(preset).image_encoder).state_dict()
    path = folder / f"{preset}.safetensors"
    named = {f"image_encoder.{name}": tensor for name, tensor in encoder.items()}
    write_tensors(path, build_model(preset).state_dict() | named)
    return path


def measure(preset: str, steps: int, embeddings: Path | None, weights: Path | None) -> dict[str, float]:
    """Trains; samples per second after the first step, and the process's peak memory, MiB."""
    from finetune.training.config import TrainConfig
    from finetune.training.train import train

    batch = PRESETS[preset]
    ends = []

    def note(step: int, means: dict[str, float]) -> None:
        ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory(prefix="sspsam-") as folder:
        config = TrainConfig(
            preset=preset,
            output_dir=Path(folder),
            data=f"stickers/train?count={batch}&phrases=1",
            steps=steps + 1,
            batch_size=batch,
            warmup_steps=1,
            stream=True,
            embeddings=embeddings,
            weights=() if weights is None else (weights,),
        )
        train(config, note)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"per_s": batch * steps / (ends[-1] - ends[0]), "mib": peak_mib}


def child(preset: str, steps: int, embeddings: Path | None, weights: Path | None) -> dict[str, float]:
    """The same in its own process."""
    command = [sys.executable, __file__, "--presets", preset, "--steps", str(steps), "--one"]
    command += ["--embeddings", str(embeddings)] if embeddings else []
    command += ["--weights", str(weights)] if weights else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measures each preset and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=PRESETS)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--embeddings", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.presets[0], options.steps, options.embeddings, options.weights)))
        return
    rows = []
    for preset in options.presets:
        with tempfile.TemporaryDirectory(prefix="sspsam-") as folder:
            weights, embeddings = random_weights(preset, Path(folder)), Path(folder) / "embeddings"
            without = child(preset, options.steps, None, weights)
            child(preset, 1, embeddings, weights)
            kept = child(preset, options.steps, embeddings, weights)
        faster = kept["per_s"] / without["per_s"]
        memory = kept["mib"] / without["mib"]
        rates = [f"{one['per_s']:.2f}" for one in (kept, without)]
        rows.append([preset, PRESETS[preset], *rates, f"{faster:.2f}", f"{kept['mib']:.0f}", f"{memory:.2f}"])
    head = [
        "preset",
        "samples per step",
        "samples/s, cached",
        "samples/s, encoded",
        "ratio",
        "peak MiB, cached",
        "cached / encoded",
    ]
    write_section(
        "Fine-tuning with cached embeddings",
        "Training throughput and peak memory of the process, weights included; float32 on the CPU. Every "
        "step uses the same images; with cached embeddings, SAM's image encoder does not run.",
        table(head, rows),
    )


if __name__ == "__main__":
    main()
