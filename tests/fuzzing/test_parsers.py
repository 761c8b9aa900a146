"""Every codec and parser on arbitrary input: a result, or the error named in its docstring."""

from __future__ import annotations

import base64
import json
import pickle
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backend.errors import ImageError, ImageFormatError, LabelingConfigError, RequestError
from backend.images.fetching import HostRule, Target
from backend.images.store import ImageStore
from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.labelstudio.config_patch import completed_config
from backend.labelstudio.interactions import read_interactions
from backend.labelstudio.regions.controls import KINDS, Kind
from backend.labelstudio.regions.labels import Label, LabelIndex
from backend.labelstudio.regions.shapes import value_to_runs
from backend.queries import PredictQuery, parse_setup
from finetune.data.files import DatasetFileError, read_plain_pickle
from finetune.data.records import RecordFormatError, RefRecord
from sspsam.images.brush_rle import brush_rle_to_mask, mask_to_brush_rle
from sspsam.images.masks import MaskFormatError, coco_rle_iou, coco_rle_to_mask, mask_to_coco_rle
from sspsam.images.png_masks import PREFIX, mask_to_png_url
from sspsam.version_store.store import DamagedVersionError, VersionCard
from tests.backend.colours import encoded, picture
from tests.fuzzing.trees import JSON, SCALARS, changed

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:PIL")]

MIB = 2**20
MEMORY_MIB = 64
CONFIG = LabelingConfig.parse(RECOMMENDED_CONFIG)


@contextmanager
def bounded_memory(most_mib: int = MEMORY_MIB) -> Iterator[None]:
    """Fails when Python's and numpy's allocations grow by more meanwhile."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most_mib * MIB
    finally:
        tracemalloc.stop()


def only(errors: type[Exception] | tuple[type[Exception], ...], call: Callable[[], Any]) -> None:
    """Calls; any other error is the test's."""
    with bounded_memory(), suppress(errors):
        call()


MASKS = st.tuples(st.integers(1, 12), st.integers(1, 12), st.binary(min_size=144, max_size=144)).map(
    lambda drawn: np.frombuffer(drawn[2], np.uint8)[: drawn[0] * drawn[1]].reshape(drawn[:2]) > 127
)
SIZES = st.one_of(st.integers(-2, 20), st.integers(-(2**40), 2**40))
BYTES = st.one_of(st.binary(max_size=60).map(list), st.lists(SCALARS, max_size=9), SCALARS)


@given(MASKS)
def test_masks_come_back(mask: np.ndarray) -> None:
    assert np.array_equal(coco_rle_to_mask(mask_to_coco_rle(mask)), mask)
    assert np.array_equal(brush_rle_to_mask(mask_to_brush_rle(mask), *mask.shape), mask)


@given(MASKS, st.integers(0, 200), st.integers(0, 255), st.integers(0, 200))
def test_brush_rle_with_a_wrong_byte_or_an_early_end(
    mask: np.ndarray, place: int, byte: int, length: int
) -> None:
    rle = mask_to_brush_rle(mask)
    rle[place % len(rle)] = byte
    only(MaskFormatError, lambda: brush_rle_to_mask(rle, *mask.shape))
    only(MaskFormatError, lambda: brush_rle_to_mask(rle[:length], *mask.shape))


@given(BYTES, SIZES, SIZES)
@example([255] * 4 + [0] * 40, 2**15, 2**15)
@example([0, 0, 0, 64, 0x38, 0x93, 0xC7, 0xFF], 4, 4)
def test_brush_rle_of_anything(rle: Any, height: int, width: int) -> None:
    if isinstance(rle, list):
        only(MaskFormatError, lambda: brush_rle_to_mask(rle, height, width))


@given(
    st.one_of(
        st.fixed_dictionaries(
            {
                "size": st.one_of(st.tuples(SIZES, SIZES).map(list), JSON),
                "counts": st.one_of(
                    st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=20),
                    st.lists(st.integers(-5, 2**40), max_size=6),
                    JSON,
                ),
            }
        ),
        st.dictionaries(st.text(max_size=5), JSON, max_size=3),
    )
)
@example({"size": [100_000, 1_000_000], "counts": "0"})
@example({"size": [4, 4], "counts": [3]})
@example({"size": [4, 4], "counts": ""})
def test_coco_rle_of_anything(rle: dict[str, Any]) -> None:
    only(MaskFormatError, lambda: coco_rle_to_mask(rle))
    only(MaskFormatError, lambda: coco_rle_iou(rle, rle))


@pytest.mark.parametrize("counts", [[], [3], [3, 5], "", "3"])
def test_counts_that_leave_pixels_out_are_refused(counts: Any) -> None:
    """What they leave out would be whatever was in memory before."""
    with pytest.raises(MaskFormatError, match="its size of 16"):
        coco_rle_to_mask({"size": [4, 4], "counts": counts})


LAUGHS = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
XML_ATTACKS = [
    f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a0 "ha">{LAUGHS}]><View>&a9;</View>',
    '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><View><Image name="&e;" value="$i"/></View>',
    '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/evil.dtd"><View/>',
    "<!doctype x [<!ENTITY % e SYSTEM 'http://127.0.0.1:9/'> %e;]><View/>",
    '<?xml version="1.0" encoding="utf-16"?><View/>',
    "<View>" * 50_000,
    "<View>" * 3000 + "</View>" * 3000,
    "<View " + " ".join(f'a{n}="x"' for n in range(20_000)) + "/>",
    "\x00<View/>",
    "<View>&undefined;</View>",
    '<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="file:///etc/passwd"/>',
]


@pytest.mark.parametrize("xml", XML_ATTACKS, ids=range(len(XML_ATTACKS)))
def test_attacks_by_labeling_config(xml: str) -> None:
    only(LabelingConfigError, lambda: LabelingConfig.parse(xml).missing())
    only(LabelingConfigError, lambda: completed_config(xml))
    if "!doctype" in xml.lower():
        with pytest.raises(LabelingConfigError, match="document type"):
            LabelingConfig.parse(xml)


TAGS = ["View", "Image", "TextArea", "BrushLabels", "Label", "KeyPointLabels", "RectangleLabels", "Style"]


@st.composite
def xml_trees(draw: st.DrawFn, depth: int = 3) -> str:
    tag = draw(st.sampled_from(TAGS))
    names = ["name", "toName", "value", "perRegion", "smart", "alias", "predicted_values", "TONAME"]
    values = st.sampled_from(["image", "$image", "$", "true", "", "a,b", "&#60;", "prompt", "mask", "é"])
    attributes = draw(st.dictionaries(st.sampled_from(names), values, max_size=4))
    inner = draw(st.lists(xml_trees(depth - 1), max_size=3)) if depth else []
    written = "".join(f' {name}="{value}"' for name, value in attributes.items())
    return f"<{tag}{written}>{''.join(inner)}</{tag}>"


VALUES = st.fixed_dictionaries(
    {},
    optional={
        "rle": st.one_of(st.lists(st.integers(0, 255), max_size=40), JSON),
        "imageDataURL": st.one_of(
            st.binary(max_size=60).map(lambda data: PREFIX + base64.b64encode(data).decode()),
            st.integers(0, 200).map(lambda end: mask_to_png_url(np.ones((6, 8), np.bool_))[:end]),
            JSON,
        ),
        "points": st.one_of(st.lists(st.tuples(SCALARS, SCALARS).map(list), max_size=6), JSON),
        **{name: SCALARS for name in ("x", "y", "width", "height", "rotation")},
    },
)


@given(VALUES, st.sampled_from(KINDS), st.integers(-2, 8), st.integers(-2, 8))
def test_region_values_of_anything(value: dict[str, Any], kind: Kind, height: int, width: int) -> None:
    def use() -> None:
        mask = value_to_runs(value, kind, height, width).to_mask()
        assert mask.shape == (height, width)

    only(MaskFormatError, use)


@given(st.text(max_size=60), st.lists(st.text(max_size=20), max_size=5))
@example("the dark circles", ["dark_circles"])
def test_labels_and_phrases_of_anything(phrase: str, names: list[str]) -> None:
    labels = [Label(name) for name in names]
    named = LabelIndex.of(labels).named_in(phrase)
    assert named is None or named in range(len(labels))
    assert all(label.phrase for label in labels if label.value)


@given(st.one_of(xml_trees(), st.text(max_size=60), st.binary(max_size=40).map(lambda b: b.decode("latin1"))))
@example('<View name="image"></View>')
def test_labeling_configs_of_anything(xml: str) -> None:
    def use() -> None:
        config = LabelingConfig.parse(xml)
        config.missing()
        if config.masks:
            config.choice_for("the first image on the left")
        completed_config(xml)

    only(LabelingConfigError, use)


@given(st.integers(0, 2000), st.text(max_size=4))
def test_the_recommended_config_with_something_in_it(place: int, text: str) -> None:
    xml = RECOMMENDED_CONFIG[:place] + text + RECOMMENDED_CONFIG[place + 1 :]
    only(LabelingConfigError, lambda: completed_config(xml))


@given(JSON)
def test_requests_of_anything(body: Any) -> None:
    only(RequestError, lambda: PredictQuery.parse(body))
    only(RequestError, lambda: parse_setup(body))


RESULT = {
    "id": "5d71ddec85",
    "from_name": "mask",
    "to_name": "image",
    "type": "brushlabels",
    "original_width": 12,
    "original_height": 9,
    "image_rotation": 0,
    "score": 0.9,
    "value": {"format": "rle", "rle": mask_to_brush_rle(np.eye(9, 12) > 0), "brushlabels": ["object"]},
}
PHRASE = {"id": "5d71ddec85", "from_name": "phrase", "type": "textarea", "value": {"text": ["the ball"]}}
CLICK = RESULT | {
    "from_name": "click",
    "type": "keypointlabels",
    "is_positive": True,
    "value": {"x": 18.7, "y": 25.7, "width": 0.23, "keypointlabels": ["refine"]},
}
BOX = RESULT | {
    "from_name": "box",
    "type": "rectanglelabels",
    "value": {"x": 46.2, "y": 24.2, "width": 21.9, "height": 29.3, "rotation": 0, "rectanglelabels": ["o"]},
}


@given(changed([[RESULT, PHRASE], [CLICK], [BOX], [RESULT, CLICK, PHRASE]]))
def test_results_of_anything(results: Any) -> None:
    """What is no region is left out, or told as a problem of the annotation."""
    if isinstance(results, list):
        known = [one for one in results if isinstance(one, dict)]
        only((), lambda: read_annotation({"result": known}, CONFIG))
        only((), lambda: read_interactions(known, CONFIG))


@given(
    st.one_of(
        JSON, changed([RefRecord.__dataclass_fields__ and {"phrase": "a", "mask_rle": {"size": [1, 1]}}])
    )
)
def test_records_and_cards_of_anything(values: Any) -> None:

    if isinstance(values, dict):
        only(RecordFormatError, lambda: RefRecord.from_dict(values))
    only(DamagedVersionError, lambda: VersionCard.from_json(json.dumps(values)))


@given(st.text(max_size=60))
@example("http://[")
@example("http://a:b@c:d@e/")
@example("http://" + "a" * 70_000)
def test_addresses_of_anything(text: str) -> None:
    only(ImageError, lambda: Target.parse(text))
    only(ImageError, lambda: Target.parse("http://a/b").follow(text))
    only(ValueError, lambda: HostRule.parse(text))


REFS = [{"ref_id": 1, "ann_id": 2, "split": "val", "sentences": [{"sent_id": 3, "sent": "the ball"}]}] * 2


@given(st.integers(0, 400), st.integers(0, 255), st.integers(0, 5), st.sampled_from([0, 2, 4, 5]))
@example(6, 4, 0, 4)
@example(66, 4, 0, 2)
def test_reference_pickles_with_wrong_bytes(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int, more: int, protocol: int
) -> None:
    data = bytearray(pickle.dumps(REFS, protocol))
    for step in range(more + 1):
        data[(place * (step + 1)) % len(data)] = (byte + step) % 256
    path = tmp_path_factory.getbasetemp() / "refs.p"
    path.write_bytes(data)
    only(DatasetFileError, lambda: read_plain_pickle(path))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    folder: Path = tmp_path_factory.mktemp("pictures")
    return ImageStore(folder, LabelStudioClient("http://127.0.0.1:9", "key"), 10 * MIB, 1_000_000, 5)


@given(
    st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 2000),
)
def test_image_headers_with_wrong_bytes(
    store: ImageStore, kind: str, changes: list[tuple[int, int]], length: int
) -> None:
    file = BytesIO(encoded(picture(), kind))
    data = bytearray(file.getvalue())
    for place, byte in changes:
        data[place % len(data)] = byte

    def use() -> None:
        uri = f"data:image/png;base64,{base64.b64encode(bytes(data[: length or None])).decode()}"
        assert store.decode(store.digest(uri)).ndim == 3

    only(ImageFormatError, use)
