"""In which order tasks teach most: by uncertainty, leaving pictures that are like earlier ones for later.

Pure functions on arrays, no I/O.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

MAX_PICKS = 2000
"""Tasks that are ordered one by one; those behind them are scored by what they would add after these."""
SAMPLED = 512
"""Pictures that say how far pictures are apart on the whole."""
ALIKE = 0.5
"""Of the median distance: pictures that are nearer to an earlier one teach less, in proportion."""


def learning_scores(certainties: Floats, descriptors: Floats) -> Floats:
    """Scores tasks so that, lowest first, they are in the order in which they teach most.

    The next task is always the one of the largest uncertainty times distance to the nearest that was chosen
    (greedy k-centre, weighted). That product never grows while more are chosen, so that 1 minus it ascends
    along the order, and near-duplicates of a chosen task come last.

    Args:
        certainties: (N,) how good the model's answer probably is, 0..1.
        descriptors: (N, D) of the tasks' pictures.

    Returns:
        (N,) in 0..1.
    """
    uncertainties = 1 - np.clip(certainties, 0, 1).astype(np.float32)
    scores = np.ones_like(uncertainties)
    spread = _spread(descriptors)
    distances = np.ones_like(uncertainties)
    left = np.ones(len(uncertainties), bool)
    for _ in range(min(MAX_PICKS, len(uncertainties))):
        gains = np.where(left, uncertainties * distances, -1)
        pick = int(gains.argmax())
        scores[pick], left[pick] = 1 - gains[pick], False
        distances = np.minimum(distances, _distances(descriptors, descriptors[pick], spread))
    scores[left] = 1 - (uncertainties * distances)[left]
    return scores


def _distances(descriptors: Floats, to: Floats, spread: float) -> Floats:
    """(N,) distance to one picture, 1 from `spread` on; all 1 where pictures do not differ at all."""
    if spread == 0:
        return np.ones(len(descriptors), np.float32)
    apart = np.linalg.norm(descriptors - to, axis=1) / spread
    return np.asarray(np.minimum(apart, 1), np.float32)


def _spread(descriptors: Floats) -> float:
    """The distance from which on pictures count as different: a part of the median distance."""
    step = max(1, len(descriptors) // SAMPLED)
    some = descriptors[::step]
    if len(some) < 2:
        return 0.0
    squares = (some**2).sum(1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares - 2 * some @ some.T, 0))
    return ALIKE * float(np.median(apart[np.triu_indices(len(some), 1)]))
