"""Records outputs of the authors' code for tests/golden: `python -m tools.record_golden CHECKOUT VARIANT`.

VARIANT is `ssp-sam-224`, `ssp-sam-336`, or `ablations`: those of ssp-sam-224 that have their own file.
CHECKOUT is a clone of https://github.com/WayneTomas/SSP-SAM, whose code is run; its weights are not needed.
Tensors are generated from their names and inputs from a seed, as in tests/sspsam/golden.py. SAM's image
encoder is not run: its output is an input.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sspsam.presets import IMAGE_ENCODERS, Preset, get_preset
from tests.sspsam.golden import GOLDEN_FOLDER, golden_checkpoint, golden_inputs, golden_record, golden_tensor

ENCODER = "encoder."
UNUSED = "img2img_attn.pos_"
RECORDED_FIRST = "ssp-sam-224"
"""The variant whose phrases, tokens and points all others use."""
ABLATIONS = {
    "verification-gaussian": "wo_gaussian",
    "rec-head": "single_task",
    "linguistic-adapter": "only_VAD_Q_token",
    "visual-adapter": "only_LAD_Q_token",
    "linguistic-adapter-without-visual-adapter": "only_Q_token",
}
"""Ablated part -> the authors' file, models/ablation/ssp_sam_224_<name>.py."""


class NoEncoder(nn.Module):
    """Replaces SAM's image encoder, of which only the size is used."""

    def __init__(self, img_size: int, **_options: object) -> None:
        super().__init__()
        self.img_size = img_size


def main(checkout: Path, variant: str) -> None:
    """Runs the authors' code and writes its outputs."""
    prepare(checkout)
    record = record_ablations() if variant == "ablations" else record_variant(variant)
    (GOLDEN_FOLDER / f"{variant}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def record_variant(variant: str) -> dict[str, Any]:
    """Inputs of a variant, with its intermediate and final outputs."""
    preset, first = get_preset(variant), golden_record(RECORDED_FIRST)
    clip, embedding = preset.clip, IMAGE_ENCODERS[preset.image_encoder]
    grid = embedding.image_size // embedding.patch_size
    record = {
        "variant": variant,
        "phrases": first["phrases"],
        "seed": first["seed"],
        "tokens": first["tokens"],
        "clip_image_shape": [2, 3, clip.image_size, clip.image_size],
        "image_embedding_shape": [2, embedding.embedding_dim, grid, grid],
        "low_res_points_yx": first["low_res_points_yx"],
    }
    model = build(variant.replace("-", "_"), variant)
    seen = listen(model)
    answers = ask(model, seen, record)
    return record | {"taps": _taps({name: outputs[0] for name, outputs in seen.items()}, preset)} | answers


def record_ablations() -> dict[str, Any]:
    """Outputs of each ablation for the inputs of RECORDED_FIRST."""
    record = golden_record(RECORDED_FIRST)
    answers = {}
    for part, file in ABLATIONS.items():
        model: Any = build(f"ablation.ssp_sam_224_{file}", RECORDED_FIRST, "visual-adapter" not in part)
        if file.startswith("only_"):  # these swap batch and tokens, for an earlier version of their SAM
            model.sam.register_forward_pre_hook(
                lambda _module, inputs: ({**inputs[0], "prompts": inputs[0]["prompts"].transpose(0, 1)},)
            )
        answers[part] = ask(model, listen(model), record)
    return answers


def prepare(checkout: Path) -> None:
    """Makes the authors' code importable, without SAM's image encoder."""
    sys.path[:0] = [str(checkout), str(checkout / "segment-anything")]
    sys.modules["pkg_resources"] = ModuleType("pkg_resources")
    sys.modules["pkg_resources"].packaging = import_module("packaging")  # type: ignore[attr-defined]
    import_module("packaging.version")
    build_sam = import_module("segment_anything.build_sam")
    build_sam.ImageEncoderViT = NoEncoder  # type: ignore[attr-defined]


def build(file: str, variant: str, surgery: bool = True) -> nn.Module:
    """The model of one of the authors' files with the golden tensors, in evaluation mode."""
    clip_state = {
        k.removeprefix(ENCODER): v for k, v in golden_checkpoint(variant).items() if k.startswith(ENCODER)
    }
    clip = import_module("clip.build_model").build_model("CS-" if surgery else "", clip_state)
    import_module("clip").load = lambda *_arguments, **_options: (clip, None)  # type: ignore[attr-defined]
    module = import_module(f"models.{file}")
    module.sam_checkpoint = None  # type: ignore[attr-defined]
    model: nn.Module = module.SSP_SAM("", SimpleNamespace(is_pretrain=False)).eval()
    state = {key: golden_tensor(key, tuple(value.shape)) for key, value in model.state_dict().items()}
    model.load_state_dict(
        {key: value for key, value in state.items() if not key.startswith(UNUSED)}, strict=False
    )
    return model


def listen(model: Any) -> dict[str, list[Any]]:
    """Records the outputs of some modules."""
    seen: dict[str, list[Any]] = {}
    taps = {
        "image": model.encoder.visual, "words": model.encoder.ln_final, "phrase": model.phrase_attn,
        "attended": model.img2text_attn, "fused": model.mlp, "prompts": model.norm,
        "decoded": model.sam.mask_decoder,
    }  # fmt: skip
    for name, module in taps.items():
        module.register_forward_hook(_listener(seen.setdefault(name, [])))
    return seen


@torch.inference_mode()
def ask(model: Any, seen: dict[str, list[Any]], record: dict[str, Any]) -> dict[str, Any]:
    """Boxes and masks."""
    clip_images, image_embeddings, tokens = golden_inputs(record)
    batch, side = clip_images.shape[0], clip_images.shape[-1]
    size = torch.tensor([[side, side]] * batch)
    where = {"size": size, "ratio": torch.ones(batch, 2), "orig_size": size}
    output = model(clip_images, None, tokens, None, image_embeddings, size, where)
    points = torch.tensor(record["low_res_points_yx"])
    logits, iou_predictions, _ = (torch.cat(parts) for parts in zip(*seen["decoded"], strict=True))
    return {
        "boxes_cxcywh": output["pred_boxes"][:, 0].tolist() if "pred_boxes" in output else None,
        "low_res_logits": logits[:, 0, points[:, 0], points[:, 1]].tolist(),
        "low_res_mean": logits.mean(dim=(1, 2, 3)).tolist(),
        "low_res_std": logits[:, 0].std(dim=(1, 2)).tolist(),
        "low_res_positive_fraction": (logits > 0).float().mean(dim=(1, 2, 3)).tolist(),
        "iou_prediction": iou_predictions[:, 0].tolist(),
    }


def _listener(outputs: list[Any]) -> Callable[[nn.Module, Any, Any], None]:
    """Records a module's output; the decoder is called image by image."""
    return lambda _module, _inputs, output: outputs.append(output)


def _taps(seen: dict[str, Any], preset: Preset) -> dict[str, Any]:
    clip, last = preset.clip, preset.clip.grid_size**2 - 1
    points, prompts = [(0, 0), (1, 3), (7, 77)], preset.prompt.tokens
    words = [*points[:2], (3, 77), (76, clip.text_width - 1)]
    return {
        "clip_image_features_b_token_channel": _at(seen["image"], [*points, (last, clip.embed_dim // 2 - 1)]),
        "clip_word_features_b_token_channel": _at(seen["words"], words),
        "phrase_attention_b_first8": seen["phrase"][0][:, :8].tolist(),
        "image_to_text_attention_token_b_channel": _at(
            seen["attended"][0].transpose(0, 1), [*points, (last, 255)]
        ),
        "fused_multimodal_token_b_channel": _at(seen["fused"].transpose(0, 1), [*points, (last, 255)]),
        "prompt_tokens_normed_token_b_channel": _at(
            seen["prompts"].transpose(0, 1), [*points[:2], (64, 77), (prompts, 255)]
        ),
    }


def _at(values: Tensor, points: list[tuple[int, int]]) -> dict[str, list[float]]:
    """(B, token, channel) values at 'token,channel' points."""
    return {f"{token},{channel}": values[:, token, channel].tolist() for token, channel in points}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
