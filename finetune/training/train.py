"""Entry point of training, for the command line and the worker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from finetune.data.dataset import open_dataset, without_unreadable
from finetune.data.sample import Dataset
from finetune.data.stickers.dataset import StickerDataset
from finetune.training.config import ConfigError, TrainConfig
from finetune.training.loop import LOG_FRAME, LOG_NAME, ProgressFn, Stage, TrainingLoop, read_log
from finetune.training.ranks import Ranks, join_ranks
from finetune.training.stages.pretrain_clip import CLIPStage
from finetune.training.stages.pretrain_sam import SAMStage
from finetune.training.stages.rec import RECStage
from finetune.training.stages.ssp import SSPStage
from finetune.training.stages.wording import WordingStage
from sspsam import CheckpointError, Predictor, build_image_encoder, build_model
from sspsam.checkpoints.bundles import WEIGHTS_FOLDER
from sspsam.checkpoints.load import load_strictly, read_tensors, write_tensors
from sspsam.presets import base_preset, get_preset
from sspsam.runtime.process import MEBIBYTE, tune_malloc, tuning_enabled
from sspsam.runtime.product_speeds import use_faster_products

WEIGHTS_NAME = "weights.safetensors"
IMAGE_ENCODER_PREFIX = "image_encoder."
KEPT_BYTES = 256 * MEBIBYTE
"""Freed memory kept for the next step."""

logger = logging.getLogger(__name__)

Prepared = tuple[Stage, Callable[[], dict[str, Tensor]]]
"""A stage, and the function that returns its resulting tensors."""


@dataclass(frozen=True)
class TrainResult:
    """Result of a run."""

    weights: Path
    """Safetensors of the trained tensors, or of a pre-trained tower."""
    metrics: dict[str, float]
    """Running means of the final loss terms, and the last validation loss."""
    steps: int
    """Number of steps taken; fewer than configured after an early stop."""
    best_step: int | None
    """Step of the resulting weights; without a validation set: the last."""


def train(config: TrainConfig, progress: ProgressFn | None = None) -> TrainResult:
    """Runs one stage to its end, resuming from its last checkpoint, if any.

    Under `accelerate launch` or torchrun, every process calls it, and they share each batch.

    Args:
        config: the run; `config.output_dir` receives the checkpoint, the log and the weights.
        progress: called after every step.

    Raises:
        CheckpointError: initial weights are missing or do not fit.
        DatasetError: the data cannot be opened.
        NonFiniteLossError: the loss is NaN or infinite; names the samples.
    """
    torch.manual_seed(config.seed)
    processes = join_ranks(config.device)
    predictor = _load_predictor(config, processes.device_name(config.device))
    stage, result = _STAGES[config.stage](predictor, config, processes)
    loop = TrainingLoop(stage, config, predictor.device, processes)
    loop.run(progress)
    weights = config.output_dir / WEIGHTS_NAME
    if processes.is_first:
        write_tensors(weights, result())
    processes.wait()
    [*_, last] = [{}, *read_log(config.output_dir / LOG_NAME)]
    metrics = {k: v for k, v in last.items() if k not in LOG_FRAME}
    return TrainResult(weights, metrics, loop.step, None if config.validation is None else loop.stopping.step)


def tune_process(folder: Path | None = None) -> None:
    """Applies the process settings of a training: for programs, not for callers of `train`.

    The environment's TUNE_PROCESS=0 leaves all as they are.

    Args:
        folder: Keeps the measured speeds of matrix products: a training that resumes computes as before.
    """
    if not tuning_enabled():
        return
    malloc, onednn = tune_malloc(KEPT_BYTES), use_faster_products(folder)
    logger.info(
        "process settings: %s; %s (TUNE_PROCESS=0 leaves them as they are)",
        f"freed memory kept up to {KEPT_BYTES // MEBIBYTE} MiB" if malloc else "malloc as it is",
        "oneDNN matrix products on a CPU where faster" if onednn else "PyTorch's own matrix products",
    )


def write_bundle(preset: str, files: list[Path], path: Path) -> None:
    """Joins the stages' weights to one float16 file, as in the package.

    Raises:
        CheckpointError: a tensor of the model or of its image encoder is in none of the files.
    """
    model, image_encoder = build_model(preset), build_image_encoder(get_preset(preset).image_encoder)
    merged = _read_all(files)
    expected = set(model.state_dict()) | {IMAGE_ENCODER_PREFIX + key for key in image_encoder.state_dict()}
    if missing := sorted(expected - merged.keys()):
        raise CheckpointError(f"no file contains: {', '.join(missing)}")
    compact = {
        key: merged[key].half() if merged[key].is_floating_point() else merged[key] for key in expected
    }
    write_tensors(path, compact, {"preset": preset})


def _load_predictor(config: TrainConfig, device: str) -> Predictor:
    """The preset with its packaged weights, if any, and the tensors of the config's files."""
    preset = get_preset(config.preset)
    learns_phrases = config.stage in ("rec", "ssp", "wording")
    packaged = WEIGHTS_FOLDER / preset.weights if preset.weights else None
    files = [packaged] if packaged and packaged.is_file() and not config.weights and learns_phrases else []
    merged = _read_all([*files, *config.weights])
    if learns_phrases and base_preset(config.preset) != "ssp-sam-test":
        _require_frozen(config, merged)
    model, image_encoder = build_model(config.preset), build_image_encoder(preset.image_encoder)
    _overwrite(model, {k: v for k, v in merged.items() if not k.startswith(IMAGE_ENCODER_PREFIX)})
    encoder = {
        k.removeprefix(IMAGE_ENCODER_PREFIX): v
        for k, v in merged.items()
        if k.startswith(IMAGE_ENCODER_PREFIX)
    }
    _overwrite(image_encoder, encoder)
    predictor = Predictor(model, image_encoder, config.preset, device)
    if config.init is not None:
        predictor.load_trainable(read_tensors(config.init))
    return predictor


def _require_frozen(config: TrainConfig, tensors: Mapping[str, Tensor]) -> None:
    """Training on frozen random towers is impossible."""
    needed = (
        ("clip.", "sam.") if config.stage in ("rec", "wording") else ("clip.", "sam.", IMAGE_ENCODER_PREFIX)
    )
    missing = [prefix for prefix in needed if not any(key.startswith(prefix) for key in tensors)]
    if missing:
        raise CheckpointError(
            f"{config.preset} needs pre-trained parts, but no file of `weights` has tensors of: "
            + ", ".join(prefix.rstrip(".") for prefix in missing)
        )


def _read_all(files: list[Path]) -> dict[str, Tensor]:
    merged: dict[str, Tensor] = {}
    for file in files:
        merged |= read_tensors(file)
    return merged


def _overwrite(module: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replaces some of a module's tensors."""
    load_strictly(module, module.state_dict() | dict(tensors))


def _clip_stage(predictor: Predictor, config: TrainConfig, processes: Ranks) -> Prepared:
    _refuse_several(config, processes)
    stage = CLIPStage(predictor.model.clip, config, _open_stickers(config)).to(predictor.device)
    return stage, lambda: _prefixed("clip.", predictor.model.clip)


def _sam_stage(predictor: Predictor, config: TrainConfig, processes: Ranks) -> Prepared:
    _refuse_several(config, processes)
    sam, encoder = predictor.model.sam, predictor.image_encoder
    stage = SAMStage(encoder, sam, config, _open_stickers(config), predictor.model.preset.image_encoder).to(
        predictor.device
    )
    return stage, lambda: _prefixed("sam.", sam) | _prefixed(IMAGE_ENCODER_PREFIX, encoder)


def _phrase_stage(predictor: Predictor, config: TrainConfig, processes: Ranks) -> Prepared:
    replay: Dataset | None = _open_phrases(config.replay) if config.replay else None
    validation: Dataset | None = _open_phrases(config.validation) if config.validation else None
    make = RECStage if config.stage == "rec" else SSPStage
    stage = make(predictor, config, _open_phrases(config.data), replay, processes, validation)
    return stage, lambda: predictor.trainable_state() | stage.text_state()


def _wording_stage(predictor: Predictor, config: TrainConfig, processes: Ranks) -> Prepared:
    _refuse_several(config, processes)
    stage = WordingStage(predictor, config, _open_stickers(config))
    return stage, stage.state


def _refuse_several(config: TrainConfig, processes: Ranks) -> None:
    if processes.count > 1:
        raise ConfigError(f"stage {config.stage} runs in one process, got {processes.count}")


def _open_stickers(config: TrainConfig) -> StickerDataset:
    data = open_dataset(config.data)
    if not isinstance(data, StickerDataset):
        raise ConfigError(
            f"stage {config.stage} renders its own stickers, expected stickers/..., got {config.data!r}"
        )
    return data


def _open_phrases(spec: str) -> Dataset:
    return without_unreadable(open_dataset(spec))


def _prefixed(prefix: str, module: torch.nn.Module) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in module.state_dict().items()}


_STAGES: dict[str, Callable[[Predictor, TrainConfig, Ranks], Prepared]] = {
    "clip": _clip_stage,
    "sam": _sam_stage,
    "rec": _phrase_stage,
    "ssp": _phrase_stage,
    "wording": _wording_stage,
}
