"""SSP-SAM: a referring phrase to the mask of what it means.

The names below are imported when first used: the command line starts without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sspsam.checkpoints.load import CheckpointError, load_checkpoint, load_image_encoder
    from sspsam.images.brush_rle import brush_rle_to_mask, mask_to_brush_rle
    from sspsam.images.masks import coco_rle_to_mask, mask_to_coco_rle
    from sspsam.modeling.model import SSPSAM, build_model
    from sspsam.modeling.sam import build_image_encoder
    from sspsam.phrases import PhraseError
    from sspsam.predictor import Predictor
    from sspsam.presets import PRESETS
    from sspsam.results import ImageEmbedding, Instance, Referent
    from sspsam.version_store.store import VersionStore

__all__ = [
    "PRESETS",
    "SSPSAM",
    "CheckpointError",
    "ImageEmbedding",
    "Instance",
    "PhraseError",
    "Predictor",
    "Referent",
    "VersionStore",
    "brush_rle_to_mask",
    "build_image_encoder",
    "build_model",
    "coco_rle_to_mask",
    "load_checkpoint",
    "load_image_encoder",
    "mask_to_brush_rle",
    "mask_to_coco_rle",
]

_HOMES = {
    "PRESETS": "presets",
    "SSPSAM": "modeling.model",
    "CheckpointError": "checkpoints.load",
    "ImageEmbedding": "results",
    "Instance": "results",
    "PhraseError": "phrases",
    "Predictor": "predictor",
    "Referent": "results",
    "VersionStore": "version_store.store",
    "brush_rle_to_mask": "images.brush_rle",
    "build_image_encoder": "modeling.sam",
    "build_model": "modeling.model",
    "coco_rle_to_mask": "images.masks",
    "load_checkpoint": "checkpoints.load",
    "load_image_encoder": "checkpoints.load",
    "mask_to_brush_rle": "images.brush_rle",
    "mask_to_coco_rle": "images.masks",
}
"""Public name -> the module that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
