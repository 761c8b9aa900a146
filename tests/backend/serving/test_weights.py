"""The operator's own weights, in the backend and on the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from backend.service import build_service, load_preset
from backend.settings import Settings
from sspsam.checkpoints.load import CheckpointError, is_trainable, write_tensors
from sspsam.cli import build_app
from sspsam.predictor import Predictor
from sspsam.version_store.store import VersionCard, VersionStore
from tests.sspsam.published_files import PRESET, golden_bundle
from tests.waiting import wait_until


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "own.safetensors"
    write_tensors(path, golden_bundle(), {"preset": PRESET})
    return path


@pytest.mark.slow
def test_the_backend_loads_the_operators_weights(weights: Path, tmp_path: Path) -> None:
    settings = Settings(preset=PRESET, device="cpu", weights=weights, model_dir=tmp_path)
    predictor = load_preset(settings)
    expected = golden_bundle()
    for name, value in predictor.trainable_state().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.slow
def test_the_service_serves_them(weights: Path, tmp_path: Path, redis_url: str) -> None:
    settings = Settings(preset=PRESET, device="cpu", weights=weights, model_dir=tmp_path, redis_url=redis_url)
    service = build_service(settings)
    service.engine.start()
    try:
        wait_until(lambda: service.engine.status().state == "ready", "the model")
        image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        predictor = Predictor.from_preset(PRESET, "cpu", weights)
        expected = predictor.predict(predictor.embed(image), ["a dog"])[0]
        answer = service.engine.predict("digest", lambda: image, ["a dog"])
    finally:
        service.engine.stop()
    assert answer.referents[0].box_xyxy == pytest.approx(expected.box_xyxy, abs=1e-3)


def test_a_version_of_other_weights_does_not_serve(weights: Path, tmp_path: Path, redis_url: str) -> None:
    """It is named with the reason, and the operator's weights serve on."""
    store = VersionStore(tmp_path, PRESET)
    state = {key: value for key, value in golden_bundle().items() if is_trainable(key)}
    card = store.publish(state, VersionCard(), {})
    store.promote(card.version_id)
    foreign = replace(card, parents_sha256={"others.safetensors": "0" * 64})
    (store.path(card.version_id) / "card.json").write_text(foreign.to_json())
    settings = Settings(preset=PRESET, device="cpu", weights=weights, model_dir=tmp_path, redis_url=redis_url)
    service = build_service(settings)
    service.engine.start()
    try:
        wait_until(lambda: service.engine.status().state == "ready", "the model")
        status = service.engine.status()
    finally:
        service.engine.stop()
    assert status.version == store.base_version
    assert "was trained on others.safetensors" in status.refused[card.version_id]


def test_weights_of_another_preset_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"was made for {PRESET}, expected ssp-sam-demo"):
        load_preset(Settings(preset="ssp-sam-demo", device="cpu", weights=weights, model_dir=tmp_path))


def test_predict_from_the_shell(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(picture)
    command = ["predict", str(picture), "a dog", "--preset", PRESET, "--device", "cpu", "--json"]

    def box() -> list[float]:
        done = CliRunner().invoke(build_app(), command)
        assert done.exit_code == 0, done.output
        answer: list[float] = json.loads(done.stdout)[0]["box_xyxy"]
        return answer

    without = box()
    command += ["--weights", str(weights)]
    with_option = box()
    del command[-2:]
    monkeypatch.setenv("WEIGHTS", str(weights))
    assert box() == with_option != without
