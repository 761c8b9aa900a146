"""The first start with published weights at full size: time without the download, memory, disk, first mask.

Makes files of the published layouts and sizes, filled with seeded random numbers, in a temporary folder: the
authors' training pickle with its argparse.Namespace, OpenAI's TorchScript archive, SAM's file with its image
encoder. A mirror folder takes the place of the hub; the table of public files gets their sha256. Each part
runs in its own process.

    python benchmarks/long/first_start.py [--model ssp-sam-224] [--folder /tmp]

Needs about 8 GB of disk for ssp-sam-224, and twice the memory of its largest file while the files are made.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from benchmarks.common.sections import ROOT, machine, table
from sspsam import Predictor
from sspsam.checkpoints import registry
from sspsam.checkpoints.convert import _expected
from sspsam.checkpoints.files import WeightsFolder
from sspsam.checkpoints.preparing import Machine, prepare
from sspsam.checkpoints.ready_models import MODELS, PublishedModel
from sspsam.checkpoints.registry import PublicFile, find_public_file
from sspsam.checkpoints.state_dicts import IMAGE_ENCODER_PREFIX
from sspsam.files import sha256_of_file
from sspsam.presets import get_preset
from tests.sspsam.published_files import (
    OpenAIArchive,
    Tensors,
    clip_towers,
    reference_state,
    sam_state,
    training_pickle,
    without,
)

MOST_MEMORY = 1.3
"""Peak memory as a multiple of the largest file."""
MIB = 2**20


def random_bundle(preset: str) -> Tensors:
    """Every tensor of a variant with seeded random numbers, small enough that nothing overflows."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(value.shape, generator=generator) * 0.02
        if value.is_floating_point()
        else torch.zeros(value.shape, dtype=value.dtype)
        for name, value in _expected(preset, for_training=False).items()
    }


def write_files(model: PublishedModel, mirror: Path) -> None:
    """Writes the model's published files under their local names."""
    bundle = random_bundle(model.preset)
    checkpoint, clip, sam = (find_public_file(name) for name in model.files)
    rest = without(IMAGE_ENCODER_PREFIX, bundle)
    torch.save(training_pickle(reference_state(rest)), mirror / checkpoint.file_name)
    if get_preset(model.preset).image_encoder == "mobile":
        names = {name.removeprefix("sam."): value for name, value in bundle.items()}
        torch.save(
            {k: v for k, v in names.items() if k.startswith(("image_", "prompt_encoder", "mask_decoder"))},
            mirror / sam.file_name,
        )
    else:
        torch.save(sam_state(bundle, model.preset), mirror / sam.file_name)
    side = get_preset(model.preset).clip.image_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = OpenAIArchive(clip_towers(bundle, model.preset)).half().eval()
        picture = torch.zeros(1, 3, side, side).half()
        torch.jit.trace(module, picture, check_trace=False).save(str(mirror / clip.file_name))


def table_of(model: PublishedModel, mirror: Path) -> tuple[PublicFile, ...]:
    """The table of public files with the sha256 of those in the mirror."""
    made = {name: mirror / find_public_file(name).file_name for name in model.files}
    return tuple(
        replace(file, sha256=sha256_of_file(made[file.name])) if file.name in made and file.sha256 else file
        for file in registry.PUBLIC_FILES
    )


class Silent:
    """Shows nothing."""

    def say(self, line: str) -> None:
        """Of the preparation."""

    def downloading(self, file: PublicFile) -> nullcontext[object]:
        return nullcontext(lambda done, total: None)


def start(model: PublishedModel, folder: Path) -> dict[str, float]:
    """Seconds of a start up to a loadable file, and the process's peak memory."""
    mirror = folder / "mirror"
    registry.PUBLIC_FILES = table_of(model, mirror)
    weights = WeightsFolder(folder / "weights", str(mirror))
    weights.folder.mkdir(exist_ok=True)
    for name in model.files:  # the download, which is not measured; links spare the disk
        file = find_public_file(name)
        if file.sha256 and not weights.path(file).exists():
            os.link(mirror / file.file_name, weights.path(file))
        weights.pull(file)
    since_s = time.perf_counter()
    enough = Machine(2**60, 2**60, 0)
    ready = prepare(model, weights, enough, Silent(), lambda short: True)
    took_s = time.perf_counter() - since_s
    assert ready.weights is not None
    return {
        "s": took_s,
        "mib": _peak_mib(),
        "bundle": ready.weights.stat().st_size,
        "path": str(ready.weights),
    }


def ask(model: PublishedModel, path: Path) -> dict[str, float]:
    """Seconds to load, to the first mask, of a further phrase; peak memory."""
    import numpy as np

    since_s = time.perf_counter()
    predictor = Predictor.from_preset(model.preset, "cpu", path)
    loaded_s = time.perf_counter()
    embedding = predictor.embed(np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8))
    predictor.predict(embedding, ["the dog on the left"])
    first_s = time.perf_counter()
    predictor.predict(embedding, ["the red car"])
    return {
        "load_s": loaded_s - since_s,
        "first_s": first_s - loaded_s,
        "phrase_s": time.perf_counter() - first_s,
        "mib": _peak_mib(),
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _apart(what: str, model: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", what, "--model", model, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _one(what: str, model: PublishedModel, folder: Path) -> dict[str, float]:
    if what == "files":
        (folder / "mirror").mkdir()
        write_files(model, folder / "mirror")
        return {"bytes": sum(path.stat().st_size for path in (folder / "mirror").iterdir())}
    if what == "start":
        return start(model, folder)
    (bundle,) = (folder / "weights/converted").glob("*.safetensors")
    return ask(model, bundle)


def main() -> None:
    """Measures and prints a section for docs/performance.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="ssp-sam-224", choices=list(MODELS))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_one(options.one, MODELS[options.model], options.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="first-start-", dir=options.folder) as made:
        folder = Path(made)
        _apart("files", options.model, folder)
        largest = max(path.stat().st_size for path in (folder / "mirror").iterdir())
        first, second = (_apart("start", options.model, folder) for _ in range(2))
        asked = _apart("ask", options.model, folder)
        disk = sum(path.stat().st_size for path in (folder / "weights").rglob("*") if path.is_file())
    ratio = first["mib"] * MIB / largest
    rows = [
        [options.model, f"{first['s']:.1f}", f"{second['s']:.1f}", f"{first['mib']:.0f}", f"{ratio:.2f}",
         f"{disk / 1e9:.2f}", f"{asked['load_s']:.1f}", f"{asked['first_s']:.1f}", f"{asked['phrase_s']:.2f}",
         f"{asked['mib']:.0f}"]
    ]  # fmt: skip
    head = ["model", "first start s", "second start s", "peak MiB",
            f"of the largest file, at most {MOST_MEMORY}",
            "disk GB", "load s", "first mask s", "further phrase s", "peak MiB serving"]  # fmt: skip
    print(
        f"`python benchmarks/long/first_start.py --model {options.model}`. {machine()}\n\n{table(head, rows)}"
    )


if __name__ == "__main__":
    main()
