"""Conversion: every published format gives the same bundle; all others are refused."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sspsam
from sspsam.checkpoints.convert import card_path, convert
from sspsam.checkpoints.load import CheckpointError, read_metadata, read_tensors, write_tensors
from tests.sspsam.published_files import (
    PRESET,
    Tensors,
    clip_towers,
    golden_bundle,
    reference_state,
    sam_state,
    save_openai_archive,
    training_pickle,
    with_surgery_names,
    without,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("convert"),  # the module's fixtures are made once
]


@pytest.fixture(scope="module")
def bundle() -> Tensors:
    return golden_bundle()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, bundle: Tensors) -> dict[str, Path]:
    """CLIP and SAM as they are published."""
    folder = tmp_path_factory.mktemp("published")
    found = {
        name: folder / name
        for name in ("ViT-B-16.pt", "open_clip.safetensors", "open_clip.pt", "sam_vit.pth")
    }
    save_openai_archive(bundle, found["ViT-B-16.pt"])
    clip = {key: value.clone() for key, value in clip_towers(bundle).state_dict().items()}
    save_file(clip, found["open_clip.safetensors"])
    training = {
        "epoch": 32,
        "name": "run",
        "state_dict": {f"module.{key}": value for key, value in clip.items()},
    }
    torch.save(training, found["open_clip.pt"])
    torch.save(sam_state(bundle), found["sam_vit.pth"])
    return found


def assert_same(path: Path, expected: Tensors) -> None:
    found = read_tensors(path)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key].float(), value), key


CLIP_FORMS = {"plain": lambda s: s, "surgery": with_surgery_names, "absent": lambda s: without("encoder.", s)}
ENCODER_FORMS = {"with": lambda s: s, "without": lambda s: without("sam.image_encoder.", s)}
WRAPPERS = {"training": training_pickle, "bare": lambda s: s}


@pytest.mark.parametrize(
    ("clip", "encoder", "wrapper"), list(itertools.product(CLIP_FORMS, ENCODER_FORMS, WRAPPERS))
)
def test_every_form_of_the_authors_checkpoints(
    bundle: Tensors, files: dict[str, Path], tmp_path: Path, clip: str, encoder: str, wrapper: str
) -> None:
    state = ENCODER_FORMS[encoder](CLIP_FORMS[clip](reference_state(bundle)))
    torch.save(WRAPPERS[wrapper](state), tmp_path / "checkpoint_best_miou.pth")
    sources = [tmp_path / "checkpoint_best_miou.pth"]
    sources += [files["ViT-B-16.pt"]] if clip == "absent" else []
    sources += [files["sam_vit.pth"]] if encoder == "without" else []
    convert(sources, PRESET, tmp_path / "bundle.safetensors")
    assert_same(tmp_path / "bundle.safetensors", bundle)


@pytest.mark.parametrize("clip", ["ViT-B-16.pt", "open_clip.safetensors", "open_clip.pt"])
def test_every_form_of_clip(bundle: Tensors, files: dict[str, Path], tmp_path: Path, clip: str) -> None:
    torch.save(without("encoder.", reference_state(bundle)), tmp_path / "ssp.pth")
    convert([files[clip], tmp_path / "ssp.pth"], PRESET, tmp_path / "bundle.safetensors")
    assert_same(tmp_path / "bundle.safetensors", bundle)


def test_pickles_from_before_torch_1_6(bundle: Tensors, tmp_path: Path) -> None:
    state = reference_state(bundle)
    torch.save(training_pickle(state), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    convert([tmp_path / "old.pth"], PRESET, tmp_path / "bundle.safetensors")
    assert_same(tmp_path / "bundle.safetensors", bundle)


def test_a_trained_decoder_is_kept(bundle: Tensors, files: dict[str, Path], tmp_path: Path) -> None:
    trained = {
        key: value + 1 if key.startswith("sam.mask_decoder") else value for key, value in bundle.items()
    }
    torch.save(without("sam.image_encoder.", reference_state(trained)), tmp_path / "ssp.pth")
    for sources in (
        [tmp_path / "ssp.pth", files["sam_vit.pth"]],
        [files["sam_vit.pth"], tmp_path / "ssp.pth"],
    ):
        convert(sources, PRESET, tmp_path / "bundle.safetensors")
        assert_same(tmp_path / "bundle.safetensors", trained)


def test_the_card_says_what_is_in_it(bundle: Tensors, files: dict[str, Path], tmp_path: Path) -> None:
    torch.save(without("encoder.", reference_state(bundle)), tmp_path / "ssp.pth")
    out = tmp_path / "new" / "bundle.safetensors"
    convert([tmp_path / "ssp.pth", files["ViT-B-16.pt"]], PRESET, out)
    card = json.loads(card_path(out).read_text())
    assert (card["preset"], card["complete"], card["tensors"]) == (PRESET, True, len(bundle))
    assert card["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert card["size_bytes"] == out.stat().st_size
    ssp, clip = card["sources"]
    assert (ssp["file"], ssp["layout"], clip["file"], clip["layout"]) == (
        "ssp.pth",
        "ssp-sam",
        "ViT-B-16.pt",
        "clip",
    )
    assert clip["sha256"] == hashlib.sha256(files["ViT-B-16.pt"].read_bytes()).hexdigest()
    assert clip["tensors"] == sum(key.startswith("clip.") for key in bundle)
    assert ssp["tensors"] + clip["tensors"] == len(bundle)
    assert "MIT" in clip["licence"]
    assert "Apache-2.0" in ssp["licence"]
    assert read_metadata(out)["preset"] == PRESET
    assert json.loads(read_metadata(out)["sources"]) == card["sources"]


def test_a_bundle_serves(bundle: Tensors, tmp_path: Path) -> None:
    torch.save(training_pickle(with_surgery_names(reference_state(bundle))), tmp_path / "ssp.pth")
    convert([tmp_path / "ssp.pth"], PRESET, tmp_path / "bundle.safetensors")
    model, encoder = sspsam.build_model(PRESET), sspsam.build_image_encoder("vit_test")
    sspsam.load_checkpoint(model, tmp_path / "ssp.pth")
    prefix = "image_encoder."
    encoder.load_state_dict({k.removeprefix(prefix): v for k, v in bundle.items() if k.startswith(prefix)})
    expected = sspsam.Predictor(model, encoder, PRESET, "cpu")
    found = sspsam.Predictor.from_preset(PRESET, "cpu", tmp_path / "bundle.safetensors")
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    answers = [p.predict(p.embed(image), ["a dog", "red"]) for p in (expected, found)]
    for want, got in zip(*answers, strict=True):
        assert np.array_equal(got.mask, want.mask)
        assert got.box_xyxy == pytest.approx(want.box_xyxy, abs=1e-3)
        assert got.score == pytest.approx(want.score, abs=1e-5)


def test_only_what_training_starts_from(bundle: Tensors, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "frozen.safetensors"
    card = convert([files["ViT-B-16.pt"], files["sam_vit.pth"]], PRESET, out, for_training=True)
    frozen = ("clip.", "sam.", "image_encoder.")
    assert not card.complete
    assert_same(out, {key: value for key, value in bundle.items() if key.startswith(frozen)})
    with pytest.raises(CheckpointError, match="missing: box_head"):
        sspsam.Predictor.from_preset(PRESET, "cpu", out)


def test_missing_and_unexpected_tensors_are_listed(bundle: Tensors, tmp_path: Path) -> None:
    state = reference_state(bundle) | {"surprise": torch.ones(1), "norm.weight": torch.ones(5)}
    del state["mlp.bias"], state["encoder.visual.proj"]
    torch.save(state, tmp_path / "ssp.pth")
    with pytest.raises(CheckpointError) as error:
        convert([tmp_path / "ssp.pth"], PRESET, tmp_path / "bundle.safetensors")
    for part in (
        "ssp.pth",
        "ssp-sam-test",
        "missing: clip.towers.visual.proj, fusion.bias",
        "unexpected: surprise",
        "of another shape: prompt_generator.norm.weight (5,) for (32,)",
    ):
        assert part in str(error.value)
    assert list(tmp_path.iterdir()) == [tmp_path / "ssp.pth"]


def test_the_preset_that_a_checkpoint_belongs_to_is_named(bundle: Tensors, tmp_path: Path) -> None:
    torch.save(reference_state(bundle), tmp_path / "ssp.pth")
    with pytest.raises(CheckpointError, match=r"ssp-sam-demo.*ssp-sam-test"):
        convert([tmp_path / "ssp.pth"], "ssp-sam-demo", tmp_path / "bundle.safetensors")


def test_what_a_lone_checkpoint_lacks_is_named(bundle: Tensors, tmp_path: Path) -> None:
    torch.save(without("encoder.", reference_state(bundle)), tmp_path / "ssp.pth")
    with pytest.raises(CheckpointError, match=r"missing: clip.towers.ln_final.bias, clip"):
        convert([tmp_path / "ssp.pth"], PRESET, tmp_path / "bundle.safetensors")


def test_wrong_files_are_refused(bundle: Tensors, files: dict[str, Path], tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.ones(1)}, tmp_path / "other.pth")
    out = tmp_path / "bundle.safetensors"
    with pytest.raises(CheckpointError, match=r"other\.pth.* layer\.weight"):
        convert([tmp_path / "other.pth"], PRESET, out)
    with pytest.raises(CheckpointError, match=r"\sclip\b"):
        convert([files["open_clip.pt"], files["ViT-B-16.pt"]], PRESET, out)
    with pytest.raises(ValueError, match=r"named \.safetensors"):
        convert([files["open_clip.pt"]], PRESET, tmp_path / "bundle.pth")
    with pytest.raises(ValueError, match=r"unknown preset 'sam-3'"):
        convert([files["open_clip.pt"]], "sam-3", out)
    assert not out.exists()


def test_a_bundle_of_another_preset_is_refused(bundle: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "bundle.safetensors"
    write_tensors(path, bundle, {"preset": "ssp-sam-224"})
    with pytest.raises(CheckpointError, match=r"ssp-sam-224.*ssp-sam-test"):
        sspsam.Predictor.from_preset(PRESET, "cpu", path)


def test_only_safetensors_serve(bundle: Tensors, tmp_path: Path) -> None:
    torch.save(bundle, tmp_path / "bundle.pth")
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        sspsam.Predictor.from_preset(PRESET, "cpu", tmp_path / "bundle.pth")


def test_parts_load_into_a_model(bundle: Tensors, files: dict[str, Path]) -> None:
    model = sspsam.build_model(PRESET)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for file, part in {"ViT-B-16.pt": "clip.", "sam_vit.pth": "sam."}.items():
        sspsam.load_checkpoint(model, files[file])
        for key, value in model.state_dict().items():
            if key.startswith(part):
                assert torch.equal(value, bundle[key]), key
    assert torch.equal(model.fusion.weight, before["fusion.weight"])


def test_parts_load_strictly(bundle: Tensors) -> None:
    model = sspsam.build_model(PRESET)
    clip = dict(clip_towers(bundle).state_dict())
    clip["surprise"] = clip.pop("visual.proj")
    with pytest.raises(
        CheckpointError, match=r"missing: clip.towers.visual.proj; unexpected: clip.towers.surprise"
    ):
        sspsam.load_checkpoint(model, clip)


def test_a_pickle_that_needs_code_is_explained(tmp_path: Path) -> None:
    torch.save({"model": {"tf_scale": torch.ones(1)}, "args": Path("a")}, tmp_path / "ssp.pth")
    with pytest.raises(CheckpointError, match=r"ssp\.pth.* pathlib"):
        read_tensors(tmp_path / "ssp.pth")
