"""Many results, entries, tags or phrases in one request take linear time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from backend.assistant.messages import message_of_box, open_phrases_message
from backend.assistant.prompt_box import read_box
from backend.labelstudio.annotations import read_annotation, region_texts
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.labelstudio.interactions import read_interactions
from backend.labelstudio.regions.labels import Label, LabelIndex
from backend.labelstudio.regions.shapes import value_to_runs
from backend.queries import phrases_in
from tests.attacks.growth import grows_faster_than_linear
from tests.attacks.test_bounds import bomb, region
from tests.backend.editor import click, prompt

CONFIG = LabelingConfig.parse(RECOMMENDED_CONFIG)
RLE = bomb(4, 4)


def results(count: int) -> list[dict[str, Any]]:
    """Regions with their phrases, and a prompt box."""
    texts = [
        {**prompt(f"phrase {number}"), "id": f"region{number}", "from_name": "phrase"}
        for number in range(count)
    ]
    box = [prompt(*(f"entry {number}" for number in range(count))), prompt("a;" * count)]
    return [region(number, 4, 4, RLE) for number in range(count)] + texts + box


def form(count: int) -> str:
    tags = "".join(
        f'<TextArea name="t{number}" toName="image" perRegion="true"/>'
        f'<TextArea name="u{number}" toName="image"/>'
        f'<BrushLabels name="b{number}" toName="image"><Label value="label {number}"/></BrushLabels>'
        for number in range(count)
    )
    return f'<View><Image name="image" value="$image"/>{tags}</View>'


def zigzag(count: int) -> dict[str, Any]:
    return {"points": [[number % 100, 100 * (number % 2) / 64] for number in range(count)]}


IMAGE = '<Image name="image" value="$image"/>'


def controls(tag: str, count: int) -> str:
    """Many region controls; those without labels share a <Labels>."""
    labels = "".join(f'<Label value="label {number}"/>' for number in range(count))
    tags = "".join(f'<{tag} name="c{number}" toName="image"/>' for number in range(count))
    others = "".join(f'<Labels name="l{number}" toName="image{number}"/>' for number in range(count))
    return f'<View>{IMAGE}{others}<Labels name="l" toName="image">{labels}</Labels>{tags}</View>'


def nested(count: int) -> str:
    """A label is one of every tag around it."""
    labels = "".join(f'<Label value="label {number}"/>' for number in range(count))
    names = [f'<BrushLabels name="b{number}" toName="image">' for number in range(90)]
    return f"<View>{IMAGE}{''.join(names)}{labels}{'</BrushLabels>' * 90}</View>"


def entries(count: int) -> list[str]:
    """A phrase that is entered and denied again and again, among others, some of which failed."""
    return [
        text
        for number in range(count // 4)
        for text in ("cat", "no cat", f"a {number}", f"b {number}  \u26a0 x")
    ]


def without_blanks(count: int) -> LabelingConfig:
    labels = "".join(f'<Label value="狗{number}"/>' for number in range(count))
    return LabelingConfig.parse(
        f'<View>{IMAGE}<BrushLabels name="b" toName="image">{labels}</BrushLabels></View>'
    )


READERS: dict[str, Callable[[int], object]] = {
    "an annotation": lambda n: read_annotation({"result": results(n // 8)}, CONFIG),
    "an annotation's texts": lambda n: region_texts({"result": results(n)}, CONFIG),
    "clicks": lambda n: read_interactions([click(1, 1, str(number)) for number in range(n)], CONFIG),
    "a prompt box": lambda n: read_box(entries(n)),
    "a prompt box of one entry": lambda n: read_box([";".join(entries(n))]),
    "an absence box": lambda n: read_box(entries(n), entries(n), entries(n)),
    "a box's message": lambda n: message_of_box(entries(n), CONFIG),
    "a message": lambda n: open_phrases_message(entries(n), dict.fromkeys(entries(n), "x"), CONFIG),
    "phrases": lambda n: phrases_in({"phrases": entries(n)}),
    "a form": lambda n: LabelingConfig.parse(form(n // 8)).missing(),
    "a polygon": lambda n: value_to_runs(zigzag(n), "polygon", 64, 64),
    "labels of a phrase": lambda n: LabelIndex.of([Label("dog")]).named_in("boats and " * n),
    "polygon controls": lambda n: LabelingConfig.parse(controls("Polygon", n // 4)).choice_for("label 7"),
    "rectangle controls": lambda n: LabelingConfig.parse(controls("Rectangle", n // 4)).missing(),
    "nested labels": lambda n: LabelingConfig.parse(nested(n // 32)).choice_for("label 7"),
    "labels without blanks": lambda n: without_blanks(n).choice_for("the 狗 " * 40 + "狗7"),
    "labels": lambda n: LabelingConfig.parse(form(n // 8)).choice_for("the label 7"),
}


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_many_things_take_linear_time(reader: str) -> None:
    assert not grows_faster_than_linear(READERS[reader])
