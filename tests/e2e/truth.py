"""True masks of the demo's images, and the annotations saved in Label Studio."""

from collections.abc import Sequence

import numpy as np

from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from sspsam import Predictor, Referent
from sspsam.images.image_io import read_picture
from sspsam.images.masks import BoolMask
from tests.e2e.running_demo import Demo
from worker.local.demo_pictures import Picture, demo_scene

CONFIG = LabelingConfig.parse(RECOMMENDED_CONFIG)
UNDERSTOOD_IOU = 0.5


def task_of(demo: Demo, picture: Picture) -> int:
    """The task that shows a picture; Label Studio puts a prefix before a file's name."""
    tasks = demo.client.tasks(demo.project)
    return next(int(task["id"]) for task in tasks if task["data"]["image"].endswith(f"-{picture.path.name}"))


def saved_regions(demo: Demo, task: int) -> dict[str, BoolMask]:
    """Phrase -> mask, of a task's only annotation."""
    (annotation,) = demo.client.annotations(task)
    return {str(region.phrase): region.mask for region in read_annotation(annotation, CONFIG).regions}


def true_masks(picture: Picture) -> dict[str, BoolMask]:
    """Phrase -> what it means, of a picture's phrases that mean something."""
    scene = demo_scene(picture.seed)
    return {phrase.text: scene.mask_of(phrase.targets) for phrase in picture.phrases if phrase.targets}


def overlap(one: BoolMask, other: BoolMask) -> float:
    """Intersection over union."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def parts(mask: BoolMask, x: float, y: float) -> tuple[float, float]:
    """A pixel, in parts of the picture's width and height."""
    height, width = mask.shape
    return (x + 0.5) / width, (y + 0.5) / height


def inside(mask: BoolMask) -> tuple[float, float]:
    """The pixel of a mask that is nearest to its middle."""
    rows, columns = np.nonzero(mask)
    nearest = np.hypot(rows - rows.mean(), columns - columns.mean()).argmin()
    return parts(mask, float(columns[nearest]), float(rows[nearest]))


def understands(predictor: Predictor, picture: Picture) -> bool:
    """Whether the phrases of a picture get the masks of what they mean, and the last one none."""
    truth = true_masks(picture)
    return all(
        overlap(referent.mask, truth[referent.phrase]) > UNDERSTOOD_IOU
        if referent.phrase in truth
        else referent.no_target
        for referent in referents(predictor, picture, [phrase.text for phrase in picture.phrases])
    )


def referents(predictor: Predictor, picture: Picture, phrases: Sequence[str]) -> list[Referent]:
    """What the model answers, in this process."""
    return predictor.predict(predictor.embed(read_picture(picture.path)), list(phrases))
