"""Weights are never in memory twice: peak resident memory of a separate process, with files of 200 MB."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sspsam.checkpoints.load import write_tensors
from sspsam.presets import IMAGE_ENCODERS, PRESETS
from tests.sspsam.published_files import (
    PRESET,
    golden_bundle,
    reference_state,
    sam_state,
    save_openai_archive,
    training_pickle,
    without,
)

LIMIT = 1.2
"""Of the size of the files that are read, beyond what a model takes whose weights are next to nothing."""

DEFINITIONS = f"""
from dataclasses import replace
from sspsam.presets import IMAGE_ENCODERS, PRESETS
IMAGE_ENCODERS["vit_middle"] = replace(IMAGE_ENCODERS["vit_test"], width=768, depth=6, heads=12)
PRESETS["ssp-sam-middle"] = replace(PRESETS["{PRESET}"], image_encoder="vit_middle")
"""

MEASURE = """
import json, os, sys
from pathlib import Path
import open_clip, torch
from sspsam.checkpoints.convert import convert
from sspsam.checkpoints.load import read_metadata
from sspsam.predictor import Predictor

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

def measure(what, paths):
    *sources, bundle = map(Path, paths)
    before = resident("VmRSS")
    if what == "convert":
        convert(sources, "ssp-sam-middle", bundle)
    else:
        predictor = Predictor.from_preset(read_metadata(bundle)["preset"], "cpu", bundle)
        modules = (predictor.model, predictor.image_encoder)
        assert all(p.sum().isfinite() for module in modules for p in module.parameters())
    print(resident("VmHWM") - before, flush=True)

for what, *paths in json.loads(sys.argv[1]):
    child = os.fork()  # with the modules of its parent, and a peak of its own
    if not child:
        measure(what, paths)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"failed: {what} {paths}")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a preset with a larger image encoder."""
    folder = tmp_path_factory.mktemp("middle")
    with pytest.MonkeyPatch.context() as patch:
        encoder = replace(IMAGE_ENCODERS["vit_test"], width=768, depth=6, heads=12)
        patch.setitem(IMAGE_ENCODERS, "vit_middle", encoder)
        patch.setitem(PRESETS, "ssp-sam-middle", replace(PRESETS[PRESET], image_encoder="vit_middle"))
        bundle = golden_bundle("ssp-sam-middle")
        training = training_pickle(reference_state(bundle))
        torch.save(training, folder / "training.pth")
        torch.save(training, folder / "old.pth", _use_new_zipfile_serialization=False)
        lone = without("sam.image_encoder.", without("encoder.", reference_state(bundle)))
        torch.save(lone, folder / "lone.pth")
        torch.save(sam_state(bundle, "ssp-sam-middle"), folder / "sam.pth")
        save_openai_archive(bundle, folder / "clip.pt")
        write_tensors(folder / "bundle.safetensors", bundle, {"preset": "ssp-sam-middle"})
    return folder


def peaks(*work: tuple[object, ...]) -> list[int]:
    """Bytes that each piece of work took at most, beyond what was resident before it."""
    told = json.dumps([[str(word) for word in words] for words in work])
    command = [sys.executable, "-c", DEFINITIONS + MEASURE, told]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


@pytest.mark.slow
def test_converting_and_loading_hold_the_weights_once(folder: Path, tmp_path: Path) -> None:
    converted = [
        [folder / name for name in names]
        for names in (["training.pth"], ["old.pth"], ["lone.pth", "sam.pth", "clip.pt"])
    ]
    bundle = folder / "bundle.safetensors"
    work = [("convert", *sources, tmp_path / "bundle.safetensors") for sources in converted]
    small = tmp_path / "small.safetensors"
    write_tensors(small, golden_bundle(PRESET), {"preset": PRESET})
    *found, fixed = peaks(*work, ("load", bundle), ("load", small))
    for peak, sources in zip(found, [*converted, [bundle]], strict=True):
        size = sum(source.stat().st_size for source in sources)
        assert size > 150e6
        assert peak - fixed <= LIMIT * (size - small.stat().st_size), sources
