"""Splits the mask of a phrase into its objects, by prompting SAM within it.

The rule:

1. Seeds are points inside the mask, the deepest first. Each excludes the largest disc around it that fits
   into the mask. Connected parts below MIN_PART of the largest part have no seed.
2. SAM is asked for the mask at each seed, without the phrase.
3. The affinity of two seeds is the share of each one's core, the disc of half the radius, that the other's
   mask covers: the mean of both, weighted by how good that mask is (SAM's estimate of its IoU, times its
   share inside the answer). In one connected part, NECK times the width of the mask between them is added,
   relative to the narrower disc. Groups join in the order of their mean affinity, from SAME_PART on if they
   share a connected part, else from OTHER_PART on. So objects that touch are told apart, since neither mask
   covers the other's core, and one that is cut by an occluder stays one, since each covers the other.
4. A group that is shallow beside another group of its connected part is a protrusion, and joins it.
5. Each pixel belongs to the object whose masks have the highest mean logit there, less NEARER times its
   distance from the object's seeds, of those with a seed in its connected part; a part without a seed belongs
   to the nearest object.
6. If the phrase says how many objects there are, steps 3 and 4 join no more groups once so few are left.
7. Who asks for several things rather sees several: if one group is left, the last two stay apart below an
   affinity of RATHER_TWO.

The objects are disjoint, and their union is the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from sspsam.images import frames
from sspsam.images.frames import BoolMask
from sspsam.results import Decoded, ImageEmbedding, Instance, Question

Decode = Callable[[Sequence[Question]], Sequence[Decoded]]
"""Answers questions in order, as `sspsam.Predictor.decode`."""

MOST_SEEDS = 24
"""Bounds the number of prompts, and of objects, per mask."""
MIN_PART = 0.1
"""Least area of a connected part with an object of its own, as a fraction of the largest part."""
MIN_PART_OF_IMAGE = 0.0008
"""The same, as a fraction of the image."""
MIN_DEPTH_CELLS = 1.5
"""Least distance of a further seed of a connected part from its edge, in cells of SAM's mask grid."""
CORE = 0.5
"""Radius of a seed's core, as a fraction of its depth."""
NECK = 0.1
"""Weight of the width between two seeds in their affinity; below SAME_PART, so that it joins none alone."""
SAME_PART = 0.15
"""Affinity from which two groups of seeds in one connected part are one object."""
OTHER_PART = 0.5
"""The same, for groups without a common connected part."""
RATHER_TWO = 0.3
"""Affinity below which the last two groups are two objects."""
PROTRUSION = 0.4
"""Greatest depth of a protrusion, as a fraction of the depth of its object."""
MAX_LOGIT = 8.0
"""Limits how far a single mask decides about a pixel."""
NEARER = 4.0
"""Logits by which the distance of a side of SAM's mask grid makes a pixel less an object's."""

_NECK_STEPS = 40

Grid = npt.NDArray[np.float32]
_Labels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Seeds:
    """Points inside a mask, on SAM's mask grid."""

    cells_xy: npt.NDArray[np.int64]
    """(N, 2) column and row."""
    depths: npt.NDArray[np.float64]
    """(N,) distance to the edge of the mask, in cells."""
    parts: npt.NDArray[np.int32]
    """(N,) number of the connected part, from 1."""
    grid: BoolMask = field(repr=False)
    """(h, h) the mask on the grid."""

    def points(self, original_hw: frames.Hw) -> npt.NDArray[np.float32]:
        """(N, 3) x px, y px in the original frame, and 1, as in `Question.points`."""
        scale = max(original_hw) / len(self.grid)
        last = np.array(original_hw[::-1]) - 1
        xy = np.minimum((self.cells_xy + 0.5) * scale, last)
        return np.column_stack([xy, np.ones(len(xy))]).astype(np.float32)


def split_mask(
    embedding: ImageEmbedding, mask: BoolMask, score: float, decode: Decode, number: int | None = None
) -> list[Instance]:
    """Splits a mask into its objects; a pure function of the embedding and the mask.

    Args:
        embedding: The image's; image_embedding (1, C, h, h), so SAM's mask grid has (4h, 4h) cells.
        mask: (H, W) bool in the original frame, px.
        score: Estimated IoU of the mask, 0..1: the score of a mask that is one object.
        decode: Runs SAM on at most MOST_SEEDS questions of one point each, in one batch.
        number: How many objects there are, if that is known; more or fewer may be found.

    Returns:
        Objects by the horizontal position of their centres, from the left: each with its (H, W) bool mask in
        the original frame, and SAM's estimate of its IoU, 0..1. Empty for an empty mask.

    Source: prompting SAM with points on the object: Kirillov et al., Segment Anything (arXiv 2304.02643), 3.
    """
    if not mask.any():
        return []
    seeds = find_seeds(mask, 4 * embedding.image_embedding.shape[-1])
    if len(seeds.cells_xy) < 2:
        return [Instance(mask, score)]
    questions = [
        Question(embedding, "", point[None]) for point in seeds.points((mask.shape[0], mask.shape[1]))
    ]
    decoded = decode(questions)
    logits = np.stack([answer.mask_logits.numpy() for answer in decoded])
    scores = np.array([answer.score for answer in decoded])
    groups = group_seeds(seeds, logits, scores, number)
    if len(groups) < 2:
        return [Instance(mask, score)]
    means = np.stack(
        [
            logits[group].clip(-MAX_LOGIT, MAX_LOGIT).mean(axis=0) - NEARER * _distances(seeds, group)
            for group in groups
        ]
    )
    owners = _owners(mask, means, seeds, groups)
    found = [
        Instance(owners == number, float(scores[group].mean()))
        for number, group in enumerate(groups)
        if (owners == number).any()
    ]
    return sorted(found, key=lambda instance: float(np.flatnonzero(instance.mask.any(axis=0)).mean()))


def find_seeds(mask: BoolMask, grid_side: int) -> Seeds:
    """The points at which SAM is asked, in the order of their depth.

    Args:
        mask: (H, W) bool in the original frame.
        grid_side: Side of SAM's mask grid, cells.

    Returns:
        At most MOST_SEEDS; none for a mask that is thinner than a cell.
    """
    grid: BoolMask = frames.mask_to_sam(mask, grid_side).numpy() > 0.5
    _, parts, statistics, _ = cv2.connectedComponentsWithStats(grid.astype(np.uint8), connectivity=8)
    areas = statistics[:, cv2.CC_STAT_AREA].astype(np.float64)
    areas[0] = 0  # the background
    image_cells = grid_side**2 * min(mask.shape) / max(mask.shape)
    least = max(MIN_PART * areas.max(), min(MIN_PART_OF_IMAGE * image_cells, areas.max()))
    large = areas >= max(least, 1)
    depth = _depth(grid)
    free = np.where(large[parts], depth, 0)
    rows, columns = np.ogrid[:grid_side, :grid_side]
    found: list[tuple[int, int]] = []
    seeded: set[int] = set()
    while len(found) < MOST_SEEDS and free.any():
        row, column = (int(place) for place in np.unravel_index(int(free.argmax()), free.shape))
        part, radius = int(parts[row, column]), float(depth[row, column])
        if radius <= MIN_DEPTH_CELLS and part in seeded:
            free[(parts == part) & (free <= MIN_DEPTH_CELLS)] = 0
            continue
        found.append((column, row))
        seeded.add(part)
        free[(rows - row) ** 2 + (columns - column) ** 2 <= max(radius, 2) ** 2] = 0
    xy = np.array(found, np.int64).reshape(-1, 2)
    at = xy[:, 1], xy[:, 0]
    return Seeds(xy, depth[at].astype(np.float64), parts[at].astype(np.int32), grid)


def group_seeds(
    seeds: Seeds, mask_logits: Grid, scores: npt.NDArray[np.float64], number: int | None = None
) -> list[list[int]]:
    """The seeds of each object, by the rule in the module's docstring.

    Args:
        seeds: N points, N >= 1.
        mask_logits: (N, h, h): SAM's mask for each, on the grid.
        scores: (N,) SAM's estimates of their IoU, 0..1.
        number: How many objects there are, if that is known.
    """
    affinities = _affinities(seeds, mask_logits, scores)
    groups = _grouped(seeds, *affinities, number or 1)
    if len(groups) == 1 and number is None:
        two = _grouped(seeds, *affinities, 2)
        if len(two) == 2:
            affinity, weights = (float(sums[np.ix_(*two)].sum()) for sums in affinities)
            return two if affinity < RATHER_TWO * weights else groups
    return groups


def _grouped(
    seeds: Seeds, affinity: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], fewest: int
) -> list[list[int]]:
    """Joins groups of seeds by affinity; returns the seeds of each group.

    Args:
        seeds: N points.
        affinity: (N, N) sums of weighted affinities.
        weights: (N, N) sums of their weights.
        fewest: Joining stops at this number of groups.
    """
    affinity, weights = affinity.copy(), weights.copy()
    same_part = seeds.parts[:, None] == seeds.parts
    depths = seeds.depths.copy()
    groups = {number: [number] for number in range(len(depths))}
    while len(groups) > fewest:
        left = list(groups)
        means = affinity[np.ix_(left, left)] / weights[np.ix_(left, left)]
        excess = means - np.where(same_part[np.ix_(left, left)], SAME_PART, OTHER_PART)
        np.fill_diagonal(excess, -np.inf)
        one, other = (left[place] for place in np.unravel_index(int(excess.argmax()), excess.shape))
        if excess.max() <= 0:
            break
        _join(one, other, groups, affinity, weights, same_part, depths)
    _join_protrusions(groups, affinity, weights, same_part, depths, fewest)
    return [sorted(group) for group in groups.values()]


def _affinities(
    seeds: Seeds, mask_logits: Grid, scores: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Sums of weighted affinities (N, N) and of their weights (N, N); their quotient is the mean."""
    found = mask_logits > 0
    inside = found & seeds.grid
    share = inside.sum(axis=(1, 2)) / np.maximum(found.sum(axis=(1, 2)), 1)
    trust = share * scores + 1e-3
    rows, columns = np.ogrid[: len(seeds.grid), : len(seeds.grid)]
    cores = np.stack(
        [
            ((rows - y) ** 2 + (columns - x) ** 2 <= max(CORE * depth, 1.0) ** 2) & seeds.grid
            for (x, y), depth in zip(seeds.cells_xy, seeds.depths, strict=True)
        ]
    ).reshape(len(share), -1)
    common = inside.reshape(len(share), -1).astype(np.float32) @ cores.T.astype(np.float32)
    covered = trust[:, None] * common / np.maximum(cores.sum(axis=1), 1)
    weights = trust[:, None] + trust
    return covered + covered.T + NECK * _necks(seeds) * weights, weights


def _necks(seeds: Seeds) -> npt.NDArray[np.float64]:
    """(N, N) width of the mask at the narrowest place between two seeds of a connected part, relative to the
    narrower disc, 0..1; 0 between parts.
    """
    depth = _depth(seeds.grid)
    steps = np.linspace(0, 1, _NECK_STEPS)[:, None]
    necks = np.zeros((len(seeds.depths),) * 2)
    for one, other in np.argwhere(np.triu(seeds.parts[:, None] == seeds.parts, 1)):
        line = seeds.cells_xy[one] * (1 - steps) + seeds.cells_xy[other] * steps
        columns, rows = np.rint(line).astype(np.int64).T
        narrowest = float(depth[rows, columns].min()) / float(seeds.depths[[one, other]].min())
        necks[one, other] = necks[other, one] = min(narrowest, 1.0)
    return necks


def _distances(seeds: Seeds, group: Sequence[int]) -> Grid:
    """(h, h) distance of each cell to the nearest seed of a group, in sides of the grid."""
    places = np.ones_like(seeds.grid, np.uint8)
    columns, rows = seeds.cells_xy[list(group)].T
    places[rows, columns] = 0
    return np.asarray(cv2.distanceTransform(places, cv2.DIST_L2, 5) / len(places), np.float32)


def _depth(grid: BoolMask) -> Grid:
    """Distance of each cell of a mask to its edge, in cells; the image's border is an edge."""
    distances = cv2.distanceTransform(np.pad(grid, 1).astype(np.uint8), cv2.DIST_L2, 5)
    return np.asarray(distances[1:-1, 1:-1], np.float32)


def _join(
    one: int,
    other: int,
    groups: dict[int, list[int]],
    affinity: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    same_part: npt.NDArray[np.bool_],
    depths: npt.NDArray[np.float64],
) -> None:
    """Adds the second group to the first, in place."""
    groups[one] += groups.pop(other)
    for sums in (affinity, weights):
        sums[one] += sums[other]
        sums[:, one] += sums[:, other]
    same_part[one] |= same_part[other]
    same_part[:, one] |= same_part[:, other]
    depths[one] = max(depths[one], depths[other])


def _join_protrusions(
    groups: dict[int, list[int]],
    affinity: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    same_part: npt.NDArray[np.bool_],
    depths: npt.NDArray[np.float64],
    fewest: int,
) -> None:
    """Adds shallow groups, the shallowest first, to the deeper neighbour of the highest affinity."""
    for number in sorted(groups, key=lambda number: float(depths[number])):
        deeper = [
            other
            for other in groups
            if other != number and same_part[number, other] and depths[number] < PROTRUSION * depths[other]
        ]
        if deeper and len(groups) > fewest:
            best = max(deeper, key=lambda other: float(affinity[number, other] / weights[number, other]))
            _join(best, number, groups, affinity, weights, same_part, depths)


def _owners(mask: BoolMask, means: Grid, seeds: Seeds, groups: Sequence[Sequence[int]]) -> _Labels:
    """(H, W): the number of the object that each pixel of the mask belongs to; -1 outside the mask."""
    hw = mask.shape[0], mask.shape[1]
    count, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    columns, rows = seeds.points(hw)[:, :2].astype(np.int64).T
    seeded: dict[int, set[int]] = {}
    for number, group in enumerate(groups):
        for seed in group:
            part = int(parts[rows[seed], columns[seed]])
            if part:
                seeded.setdefault(part, set()).add(number)
    owners = np.full(hw, -1, np.int32)
    best = np.full(hw, -np.inf, np.float32)
    for number, mean in enumerate(means):
        own = [part for part, numbers in seeded.items() if number in numbers]
        inside = np.isin(parts, own)
        pixels = frames.sam_logits_to_pixels(mean, hw)
        better = inside & (pixels > best)
        owners[better] = number
        best[better] = pixels[better]
    if len(seeded) < count - 1:
        _give_to_nearest(owners, mask)
    return owners


def _give_to_nearest(owners: _Labels, mask: BoolMask) -> None:
    """Gives the pixels of the mask without an owner to the nearest object, in place."""
    owned = owners >= 0
    if not owned.any():
        owners[mask] = 0
        return
    _, nearest = cv2.distanceTransformWithLabels(
        (~owned).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    owner_of = np.zeros(int(nearest.max()) + 1, np.int32)
    owner_of[nearest[owned]] = owners[owned]
    left = mask & ~owned
    owners[left] = owner_of[nearest[left]]
