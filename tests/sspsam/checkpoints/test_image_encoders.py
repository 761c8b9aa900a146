"""`load_image_encoder`: the published layouts of SAM and MobileSAM, as files and as dicts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT

import sspsam
from sspsam.presets import get_preset
from tests.sspsam.golden import golden_shapes, golden_tensor
from tests.sspsam.published_files import PRESET, Tensors, golden_bundle, reference_state, sam_state

PREFIX = "image_encoder."
NAME = get_preset(PRESET).image_encoder

LAYOUTS: dict[str, Callable[[Tensors], object]] = {
    "segment_anything": sam_state,
    "the authors' training": reference_state,
    "our bundle": lambda bundle: bundle,
    "wrapped": lambda bundle: {"model": sam_state(bundle)},
    "the encoder alone": lambda bundle: {
        name.removeprefix(PREFIX): value for name, value in bundle.items() if name.startswith(PREFIX)
    },
}


def assert_loaded(encoder: torch.nn.Module, bundle: Tensors) -> None:
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(value, bundle[PREFIX + name], rtol=0, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("from_file", [False, True])
def test_every_layout_loads(layout: str, from_file: bool, tmp_path: Path) -> None:
    bundle = golden_bundle()
    source = LAYOUTS[layout](bundle)
    encoder = sspsam.build_image_encoder(NAME)
    if from_file:
        torch.save(source, tmp_path / "sam.pth")
        source = tmp_path / "sam.pth"
    sspsam.load_image_encoder(encoder, source)
    assert_loaded(encoder, bundle)


def test_mobile_sams_file_loads(tmp_path: Path) -> None:
    published = {name: golden_tensor(name, shape) for name, shape in golden_shapes("mobile-sam").items()}
    decoder = {
        name: value for name, value in sam_state(golden_bundle()).items() if "image_encoder" not in name
    }
    torch.save(published | decoder, tmp_path / "mobile_sam.pt")
    encoder = sspsam.build_image_encoder("mobile")
    sspsam.load_image_encoder(encoder, tmp_path / "mobile_sam.pt")
    assert_loaded(encoder, published)
    other = sspsam.build_image_encoder("mobile")
    sspsam.load_image_encoder(other, published)
    assert_loaded(other, published)


def test_an_encoder_of_another_depth_is_refused() -> None:
    torch.manual_seed(3)
    stock = ImageEncoderViT(
        depth=1, embed_dim=768, num_heads=12, use_rel_pos=True, window_size=14, out_chans=256, qkv_bias=True
    )
    encoder = sspsam.build_image_encoder("vit_b")
    state = {PREFIX + name: value for name, value in stock.state_dict().items()}
    with pytest.raises(sspsam.CheckpointError, match=r"missing.*blocks\.1\."):
        sspsam.load_image_encoder(encoder, state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(PREFIX + "pos_embed"), "missing"),
        (lambda state: state.update({PREFIX + "surplus": torch.ones(1)}), "surplus"),
        (lambda state: state.update({PREFIX + "pos_embed": torch.ones(1, 2, 2, 3)}), "pos_embed"),
        (lambda state: state[PREFIX + "pos_embed"].fill_(float("nan")), "pos_embed"),
    ],
    ids=["missing", "unexpected", "shape", "not finite"],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    change: Callable[[Tensors], object], message: str
) -> None:
    encoder = sspsam.build_image_encoder(NAME)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = sam_state(golden_bundle())
    change(state)
    with pytest.raises(sspsam.CheckpointError, match=message):
        sspsam.load_image_encoder(encoder, state)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_a_file_without_an_image_encoder_is_refused() -> None:
    state = {name: value for name, value in sam_state(golden_bundle()).items() if PREFIX not in name}
    with pytest.raises(sspsam.CheckpointError, match="no image encoder"):
        sspsam.load_image_encoder(sspsam.build_image_encoder(NAME), state)
