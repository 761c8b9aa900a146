"""Training SSP-SAM, the data sets it learns from, and how good it is on them.

The names below are imported when first used: the command line starts without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.data.dataset import open_dataset
    from finetune.data.sample import Sample
    from finetune.evaluation.evaluate import EvaluationResult, evaluate
    from finetune.metrics import BoxAccuracy, SegmentationMetrics
    from finetune.training.config import TrainConfig
    from finetune.training.train import TrainResult, train

__all__ = [
    "BoxAccuracy",
    "EvaluationResult",
    "Sample",
    "SegmentationMetrics",
    "TrainConfig",
    "TrainResult",
    "evaluate",
    "open_dataset",
    "train",
]

_HOMES = {
    "BoxAccuracy": "metrics",
    "EvaluationResult": "evaluation.evaluate",
    "Sample": "data.sample",
    "SegmentationMetrics": "metrics",
    "TrainConfig": "training.config",
    "TrainResult": "training.train",
    "evaluate": "evaluation.evaluate",
    "open_dataset": "data.dataset",
    "train": "training.train",
}
"""Public name -> the module that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
