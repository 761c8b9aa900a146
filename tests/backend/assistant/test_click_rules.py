"""What a click does to a mask, whatever the model says of it."""

from __future__ import annotations

import numpy as np
import pytest

from backend.assistant.click_rules import REACH, State, apply
from backend.labelstudio.interactions import Interaction
from backend.serving.shared_model import Clicks
from sspsam.images.masks import BoolMask

H, W = 100, 200


def rectangle(x0: int, y0: int, x1: int, y1: int) -> BoolMask:
    mask = np.zeros((H, W), np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


DOG, CAT, SUN = rectangle(10, 20, 60, 80), rectangle(90, 20, 140, 80), rectangle(170, 0, 200, 30)
EVERYTHING = np.ones((H, W), np.bool_)
NOTHING = np.zeros((H, W), np.bool_)


def click(x: float, y: float, positive: bool = True) -> Interaction:
    return Interaction(f"{x} {y}", "click", (x / W, y / H, x / W, y / H), positive)


class Scene:
    """A model that finds the object at the last point; with a phrase, what the phrase is taken for."""

    def __init__(self, *objects: BoolMask, phrase: BoolMask = NOTHING) -> None:
        self.objects = objects
        self.phrase = phrase
        self.asked: list[tuple[str, Clicks]] = []

    def __call__(self, phrase: str, clicks: Clicks) -> BoolMask:
        self.asked.append((phrase, clicks))
        if phrase:
            return self.phrase
        x, y, _ = clicks.points[-1]
        at = (int(y * H), int(x * W))
        found = next((mask for mask in self.objects if mask[at]), NOTHING)
        return EVERYTHING if clicks.includes_points and not found.any() else found


def at(mask: BoolMask | None, gesture: Interaction) -> bool:
    assert mask is not None
    return bool(mask[int(gesture.xy[1] * H), int(gesture.xy[0] * W)])


def test_an_object_is_added_and_the_rest_stays() -> None:
    after = apply(click(100, 50), State(DOG | SUN), Scene(DOG, CAT, SUN))

    np.testing.assert_array_equal(after, DOG | SUN | CAT)


def test_an_object_is_removed_and_the_rest_stays() -> None:
    state = State(DOG | CAT | SUN, phrase="the dog")

    after = apply(click(115, 50, False), state, Scene(DOG, CAT, SUN, phrase=DOG))

    np.testing.assert_array_equal(after, DOG | SUN)


def test_what_the_phrase_keeps_is_not_removed() -> None:
    """SAM takes dog and cat for one object; the phrase tells them apart."""
    state = State(DOG | CAT, phrase="the dog")

    after = apply(click(115, 50, False), state, Scene(DOG | CAT, phrase=DOG))

    np.testing.assert_array_equal(after, DOG)


def test_a_misunderstood_phrase_is_asked_again() -> None:
    state = State(CAT, phrase="the dog")

    after = apply(click(115, 50, False), state, Scene(DOG, CAT, phrase=DOG))

    np.testing.assert_array_equal(after, DOG)


@pytest.mark.parametrize("scene", [Scene(EVERYTHING), Scene(CAT), Scene(CAT, phrase=DOG), Scene()])
def test_a_small_other_part_stays(scene: Scene) -> None:
    """Also if nearly the whole mask goes, and if SAM takes all of it for one object."""
    mask = CAT | rectangle(195, 0, 200, 5)

    after = apply(click(115, 50, False), State(mask, phrase="the dog"), scene)

    assert after is not None
    assert not at(after, click(115, 50))
    assert after[:5, 195:].all()


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("scene", [Scene(), Scene(EVERYTHING), Scene(DOG | CAT | SUN)])
def test_a_model_that_does_not_help_is_followed_within_reach(scene: Scene, positive: bool) -> None:
    mask = DOG | SUN
    one = click(75, 50) if positive else click(12, 22, False)
    earlier = [click(30, 50), click(140, 90, False)]

    after = apply(one, State(mask, earlier, "the dog"), scene)

    assert after is not None
    assert at(after, one) is positive
    assert at(after, earlier[0])
    assert not at(after, earlier[1])
    np.testing.assert_array_equal(after & SUN, SUN)
    if not scene.objects:
        changed = np.argwhere(after != mask)
        center = (int(one.xy[1] * H), int(one.xy[0] * W))
        assert np.hypot(*(changed - center).T).max() <= REACH * W


def test_a_point_close_to_one_of_the_other_sign_keeps_it() -> None:
    one, other = click(30, 50), click(31, 50, False)

    after = apply(other, State(DOG, [one]), Scene(DOG))

    assert at(after, one)
    assert not at(after, other)


@pytest.mark.parametrize("state", [State(rectangle(30, 50, 31, 51)), State(DOG, [click(30, 50)])])
def test_what_cannot_be_had_changes_nothing(state: State) -> None:
    assert apply(click(30, 50, False), state, Scene(DOG)) is None


def test_a_new_object_is_what_sam_finds() -> None:
    np.testing.assert_array_equal(apply(click(100, 50), State(None), Scene(DOG, CAT)), CAT)


def test_a_new_object_of_several_clicks_is_sams_mask_of_all_points() -> None:
    scene = Scene(DOG | CAT)
    state = State(DOG, [click(30, 50)], from_clicks=True)

    np.testing.assert_array_equal(apply(click(100, 50), state, scene), DOG | CAT)
    assert scene.asked == [("", Clicks(((30 / W, 0.5, True), (100 / W, 0.5, True))))]


def test_a_box_is_the_models_answer_or_nothing() -> None:
    box = Interaction("b", "box", (0.0, 0.0, 0.5, 1.0))

    np.testing.assert_array_equal(apply(box, State(CAT, phrase="the dog"), Scene(phrase=DOG)), DOG)
    assert apply(box, State(CAT, phrase="the dog"), Scene()) is None
