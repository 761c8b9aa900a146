"""Early stopping: the best weights so far, and the number of evaluations without improvement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class EarlyStopping:
    """Follows a validation loss, and keeps the weights with its minimum."""

    patience: int
    """Evaluations in a row without a lower loss after which to stop; 0: never."""
    loss: float = math.inf
    step: int = 0
    """Step of the lowest loss."""
    waited: int = 0
    """Evaluations since then."""
    weights: dict[str, Tensor] | None = None
    """Weights with the lowest loss, on the CPU; None before the first evaluation."""

    @property
    def is_over(self) -> bool:
        return 0 < self.patience <= self.waited

    def note(self, step: int, loss: float, weights: Mapping[str, Tensor]) -> None:
        """Records an evaluation. The first finite one is the best so far."""
        if loss < self.loss:
            self.loss, self.step, self.waited = loss, step, 0
            self.weights = {name: tensor.to("cpu", copy=True) for name, tensor in weights.items()}
        else:
            self.waited += 1

    def state_dict(self) -> dict[str, Any]:
        """Content for a checkpoint; the patience comes from the configuration."""
        return {"loss": self.loss, "step": self.step, "waited": self.waited, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.loss, self.step, self.waited = state["loss"], state["step"], state["waited"]
        self.weights = state["weights"]
