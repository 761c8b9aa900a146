"""Projects besides the demo's, whose tasks all show one image that the model answers well."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from backend.labelstudio.annotations import AnnotationContent, read_annotation
from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.setup import connect_project
from sspsam import Predictor
from sspsam.images.masks import BoolMask
from tests.e2e.running_demo import Demo
from tests.e2e.truth import overlap, referents, true_masks
from worker.local.demo_pictures import Picture

CLEAR_IOU = 0.8


@dataclass
class Desk:
    """A project whose tasks all show one picture."""

    demo: Demo
    project: int
    fresh: Iterator[int]
    """Tasks that were never opened."""
    masks: Sequence[tuple[str, BoolMask]]
    """Two phrases that the model understands, with what they mean: no pixel in common."""
    nothing: str
    """A phrase for which the model finds nothing."""
    config: LabelingConfig

    def saved(self, task: int) -> AnnotationContent:
        """What a task's only annotation says."""
        (annotation,) = self.demo.client.annotations(task)
        return read_annotation(annotation, self.config)


def make_desk(demo: Demo, predictor: Predictor, title: str, config: str, copies: int) -> Desk:
    """Makes a project with this number of tasks, and connects it."""
    understood = understood_picture(demo, predictor)
    return connected_desk(demo, title, config, [understood.picture.path] * copies, understood)


@dataclass(frozen=True)
class Understood:
    """A picture, two phrases for different things in it with what they mean, and one that fits nothing."""

    picture: Picture
    masks: Sequence[tuple[str, BoolMask]]
    nothing: str


def understood_picture(demo: Demo, predictor: Predictor) -> Understood:
    """The first of the demo's that has all that."""
    picture, masks = next(
        (picture, pair) for picture in demo.pictures if (pair := understood_pair(predictor, picture))
    )
    absent = [other.phrases[-1].text for other in demo.pictures]
    nothing = next(one.phrase for one in referents(predictor, picture, absent) if one.no_target)
    return Understood(picture, masks, nothing)


def connected_desk(
    demo: Demo, title: str, config: str, uploads: Sequence[Path], understood: Understood
) -> Desk:
    """Makes a project with a task for each file."""
    project = connected_project(demo, title, config)
    for path in uploads:
        demo.client.upload_images(project, [path])
    fresh = iter([int(task["id"]) for task in demo.client.tasks(project)])
    form = LabelingConfig.parse(config)
    return Desk(demo, project, fresh, understood.masks, understood.nothing, form)


def connected_project(demo: Demo, title: str, config: str) -> int:
    """Makes a project without tasks."""
    project = int(demo.client.create_project(title, config, show_collab_predictions=False)["id"])
    connect_project(demo.client, project, demo.backend_url, demo.state.webhook_secret, demo.state.basic_auth)
    return project


def understood_pair(predictor: Predictor, picture: Picture) -> list[tuple[str, BoolMask]]:
    """Two well understood phrases of a picture for different things; none where there are none."""
    truth = true_masks(picture)
    good = [
        (one.phrase, truth[one.phrase])
        for one in referents(predictor, picture, list(truth))
        if overlap(one.mask, truth[one.phrase]) > CLEAR_IOU
    ]
    pairs = itertools.combinations(good, 2)
    return next(([one, other] for one, other in pairs if not (one[1] & other[1]).any()), [])
