"""Writes checkpoint files in published formats at the test preset's size: same names, same containers."""

from __future__ import annotations

import argparse
import warnings
from functools import cache
from pathlib import Path

import open_clip
import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

import sspsam
from sspsam.checkpoints.state_dicts import IMAGE_ENCODER_PREFIX, REFERENCE_PREFIXES
from sspsam.modeling.clip import CLIPTowers
from sspsam.modeling.sam import SAMDecoder
from sspsam.presets import get_preset
from tests.sspsam.golden import golden_tensor

PRESET = "ssp-sam-test"
Tensors = dict[str, Tensor]


def golden_bundle(preset: str = PRESET) -> Tensors:
    """Every tensor of a variant and its image encoder under our names, values made from the names."""
    return dict(_golden_bundle(preset))


@cache
def _golden_bundle(preset: str) -> Tensors:
    with torch.device("meta"):  # only the shapes are used
        model = sspsam.build_model(preset)
        encoder = sspsam.build_image_encoder(get_preset(preset).image_encoder)
    names = model.state_dict()
    names |= {IMAGE_ENCODER_PREFIX + key: value for key, value in encoder.state_dict().items()}
    bundle = {key: golden_tensor(key, tuple(value.shape)) for key, value in names.items()}
    # CLIP is published in float16; what it holds is exact in both types.
    return {key: value.half().float() if key.startswith("clip.") else value for key, value in bundle.items()}


def reference_state(bundle: Tensors) -> Tensors:
    """Under the names of the authors' implementation, with the modules that it never uses."""
    inverse = {ours: theirs for theirs, ours in REFERENCE_PREFIXES.items()}
    state = {}
    for key, value in bundle.items():
        prefix = next(prefix for prefix in inverse if key.startswith(prefix))
        state[inverse[prefix] + key.removeprefix(prefix)] = value
    state["img2img_attn.in_proj_weight"] = torch.zeros(6, 2)
    state["img2img_attn.pos_x"] = torch.zeros(4, 4)
    state["norm_text_cond_img.weight"] = torch.ones(3)
    return state


def with_surgery_names(state: Tensors, last_block: int = 2) -> Tensors:
    """Renamed as after the reference's first forward pass, with the copy that it leaves behind."""
    renamed = {}
    for key, value in state.items():
        for number in (last_block - 1, last_block):
            attention = f"encoder.visual.transformer.resblocks.{number}.attn."
            key = key.replace(attention + "in_proj_", attention + "qkv.")
            key = key.replace(attention + "out_proj.", attention + "proj.")
        renamed[key] = value
    renamed["encoder.visual.attn.qkv.weight"] = torch.ones(3, 1)
    renamed["encoder.visual.attn.proj.bias"] = torch.ones(3)
    return renamed


def without(prefix: str, state: Tensors) -> Tensors:
    return {key: value for key, value in state.items() if not key.startswith(prefix)}


def training_pickle(state: Tensors) -> dict[str, object]:
    """What the authors' training saves: the model, a stepped optimizer, a schedule, an epoch, arguments."""
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-4)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule = {
        "t_initial": 80,
        "lr_min": 1e-6,
        "base_values": [1e-4, 1e-5],
        "warmup_t": 5,
        "noise_range_t": None,
    }
    args = argparse.Namespace(lr=1e-4, dataset="unc", freeze_modules=["sam.mask_decoder"], resume=None, gpu=0)
    return {
        "model": state, "optimizer": optimizer.state_dict(), "lr_scheduler": schedule,
        "epoch": 79, "args": args,
    }  # fmt: skip


class OpenAIArchive(nn.Module):
    """The module that OpenAI traced: open_clip's towers have its names; sizes are kept as tensors."""

    def __init__(self, towers: open_clip.CLIP) -> None:
        super().__init__()
        self.visual, self.transformer, self.ln_final = towers.visual, towers.transformer, towers.ln_final
        self.token_embedding = towers.token_embedding
        for name in ("positional_embedding", "text_projection", "logit_scale"):
            setattr(self, name, getattr(towers, name))
        for name, number in {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}.items():
            self.register_buffer(name, torch.tensor(number))

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = self.visual(image) * self.logit_scale.exp()
        return features


def clip_towers(bundle: Tensors, preset: str = PRESET) -> open_clip.CLIP:
    clip = CLIPTowers(get_preset(preset).clip)
    clip.load_state_dict({k.removeprefix("clip."): v for k, v in bundle.items() if k.startswith("clip.")})
    return clip.towers.eval()


def save_openai_archive(bundle: Tensors, path: Path) -> None:
    """A TorchScript archive in float16, made by tracing."""
    side = get_preset(PRESET).clip.image_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of TorchScript, the tracer notes constants
        module = OpenAIArchive(clip_towers(bundle)).half().eval()
        picture = torch.zeros(1, 3, side, side).half()
        torch.jit.trace(module, picture, check_trace=False).save(str(path))


def sam_state(bundle: Tensors, preset: str = PRESET) -> Tensors:
    """The state of segment_anything's own class."""
    config = get_preset(preset)
    encoder = sspsam.build_image_encoder(config.image_encoder)
    decoder = SAMDecoder(config.decoder, sspsam.presets.IMAGE_ENCODERS[config.image_encoder])
    sam = Sam(encoder, decoder.prompt_encoder, decoder.mask_decoder)
    names = (
        (k.removeprefix("sam."), v) for k, v in bundle.items() if k.startswith(("sam.", "image_encoder."))
    )
    sam.load_state_dict(dict(names))
    return dict(sam.state_dict())
