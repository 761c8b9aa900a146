"""SSP-SAM: a referring phrase to the mask of what it means.

The names below are imported when first used: the command line starts without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sspsam.checkpoints.load import CheckpointError, load_checkpoint
    from sspsam.modeling.model import SSPSAM, build_model
    from sspsam.modeling.sam import build_image_encoder
    from sspsam.phrases import PhraseError
    from sspsam.predictor import Predictor
    from sspsam.presets import PRESETS
    from sspsam.results import ImageEmbedding, Referent

__all__ = [
    "PRESETS",
    "SSPSAM",
    "CheckpointError",
    "ImageEmbedding",
    "PhraseError",
    "Predictor",
    "Referent",
    "build_image_encoder",
    "build_model",
    "load_checkpoint",
]

_HOMES = {
    "PRESETS": "presets",
    "SSPSAM": "modeling.model",
    "CheckpointError": "checkpoints.load",
    "ImageEmbedding": "results",
    "PhraseError": "phrases",
    "Predictor": "predictor",
    "Referent": "results",
    "build_image_encoder": "modeling.sam",
    "build_model": "modeling.model",
    "load_checkpoint": "checkpoints.load",
}
"""Public name -> the module it lives in."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
