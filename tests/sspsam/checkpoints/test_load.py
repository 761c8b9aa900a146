"""Checkpoints: every published format loads; all others are refused."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import torch

import sspsam
from sspsam.checkpoints.load import CheckpointError, read_tensors, write_tensors
from tests.sspsam.published_files import (
    PRESET,
    Tensors,
    reference_state,
    training_pickle,
    with_surgery_names,
    without,
)


def reference_of(model: sspsam.SSPSAM) -> Tensors:
    """The model's tensors as the authors' training saves them."""
    state = dict(model.state_dict())
    return reference_state(state | {"image_encoder.pos_embed": torch.ones(3)})


def test_a_disk_that_is_full_is_an_error_of_the_disk(tmp_path: Path) -> None:
    """A limit for the size of files stands for it."""
    path, limits = tmp_path / "weights.safetensors", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"the disk does not accept {path}: .*File too large"):
            write_tensors(path, {"w": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def trained() -> sspsam.SSPSAM:
    torch.manual_seed(7)
    return sspsam.build_model(PRESET)


FORMS = {
    "plain": lambda state: state,
    "wrapped": training_pickle,
    "surgery": with_surgery_names,
}


@pytest.mark.parametrize("form", FORMS)
def test_reference_checkpoints_load(trained: sspsam.SSPSAM, form: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(FORMS[form](reference_of(trained)), path)
    model = sspsam.build_model(PRESET)
    sspsam.load_checkpoint(model, path)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in trained.state_dict().items())


def test_without_clip_the_models_own_stays(trained: sspsam.SSPSAM) -> None:
    model = sspsam.build_model(PRESET)
    own = model.state_dict()["clip.towers.visual.proj"].clone()
    sspsam.load_checkpoint(model, without("encoder.", reference_of(trained)))
    assert torch.equal(model.state_dict()["clip.towers.visual.proj"], own)
    assert torch.equal(model.fusion.weight, trained.fusion.weight)


def test_our_own_file_loads(trained: sspsam.SSPSAM, tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", trained.state_dict())
    model = sspsam.build_model(PRESET)
    sspsam.load_checkpoint(model, tmp_path / "model.safetensors")
    assert torch.equal(model.fusion.weight, trained.fusion.weight)


def test_every_misfit_is_listed(trained: sspsam.SSPSAM) -> None:
    state = reference_of(trained)
    del state["mlp.bias"]
    del state["encoder.visual.proj"]
    state["surprise"] = torch.zeros(1)
    state["norm.weight"] = torch.zeros(5)
    with pytest.raises(CheckpointError) as error:
        sspsam.load_checkpoint(sspsam.build_model(PRESET), state)
    for part in (
        "missing: clip.towers.visual.proj, fusion.bias",
        "unexpected: surprise",
        "of another shape: prompt_generator.norm.weight (5,) for (32,)",
    ):
        assert part in str(error.value)


def test_a_checkpoint_of_another_variant_is_told_by_name() -> None:
    with torch.device("meta"):
        of_336 = sspsam.build_model("ssp-sam-336").state_dict()
        model = sspsam.build_model("ssp-sam-224")
    with pytest.raises(CheckpointError, match="does not fit the model: it is one of ssp-sam-336; ") as error:
        sspsam.load_checkpoint(model, of_336)
    assert "unexpected: clip.towers.visual.transformer.resblocks.12" in str(error.value)
    assert len(str(error.value)) < 10_000


class Payload:
    """What an attacker would pickle."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_others_may_read_what_was_written(trained: sspsam.SSPSAM, tmp_path: Path) -> None:
    """As far as the umask allows: a worker writes versions, a backend of another user reads them."""
    (tmp_path / "ordinary").touch()
    write_tensors(tmp_path / "model.safetensors", trained.state_dict())
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes["model.safetensors"] == modes["ordinary"]


def test_code_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    torch.save({"model": {"tf_scale": Payload(trace)}}, path)
    with pytest.raises(CheckpointError, match="more than tensors"):
        read_tensors(path)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth", "empty.pth"])
def test_damaged_files_are_refused(trained: sspsam.SSPSAM, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".pth"):
        torch.save(trained.state_dict(), path)
    else:
        write_tensors(path, trained.state_dict())
    path.write_bytes(path.read_bytes()[: 0 if name.startswith("empty") else 5000])
    with pytest.raises(CheckpointError, match=name):
        read_tensors(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"no checkpoint at {tmp_path / 'none.pth'}"):
        read_tensors(tmp_path / "none.pth")


@pytest.mark.parametrize("source", [{"model": "weights"}, {"tf_scale": torch.ones(1), "note": "x"}])
def test_other_values_are_refused(source: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match=r"found other values under: (model|note)"):
        sspsam.load_checkpoint(sspsam.build_model(PRESET), source)
