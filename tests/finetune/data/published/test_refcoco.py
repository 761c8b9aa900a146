"""RefCOCO and its variants in their published file formats."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.data.dataset import open_dataset, phrases_of
from finetune.data.files import DATA_ROOT_VARIABLE, read_plain_pickle
from finetune.data.published.refcoco import PUBLICATIONS
from finetune.data.published.referring import segmentation_to_region
from finetune.data.sample import DatasetFileError, DatasetNameError, samples_by_image
from finetune.evaluation.evaluate import evaluate
from finetune.training.config import TrainConfig
from finetune.training.train import train
from sspsam import Predictor
from sspsam.checkpoints.load import read_tensors
from tests.finetune.published import (
    COCO_NAMES,
    FIRST,
    HEIGHT,
    LEFT,
    RIGHT,
    RING,
    SECOND,
    WIDTH,
    Mask,
    annotation,
    coco_name,
    compressed,
    polygon,
    python2_pickle,
    ref,
    write_instances,
    write_pictures,
    write_refs,
)


def test_phrases_regions_and_pictures_come_together(root: Path) -> None:
    dataset = open_dataset("refcoco/testA")
    samples = [dataset[i] for i in range(len(dataset))]
    assert [sample.phrase for sample in samples] == ["the dog on the left", "left dog", "both", "ring"]
    assert len({sample.sample_id for sample in samples}) == 4
    first = samples[0]
    np.testing.assert_array_equal(first.mask, LEFT)
    assert first.true_box_xyxy == (2.0, 4.0, 14.0, 14.0)
    assert first.image.shape == (HEIGHT, WIDTH, 3)
    assert samples[1].image is first.image, "a picture is read once for the phrases that follow each other"


@pytest.mark.parametrize(
    ("spec", "index", "expected"),
    [
        ("refcoco/testA", 2, LEFT | RIGHT),
        ("refcoco/testA", 3, RING),
        ("refcoco/val", 0, RING),
    ],
    ids=["parts are one region", "a hole stays one", "a crowd's uncompressed runs"],
)
def test_every_kind_of_region_is_drawn(root: Path, spec: str, index: int, expected: Mask) -> None:
    np.testing.assert_array_equal(open_dataset(spec)[index].mask, expected)


def test_samples_of_one_picture_follow_each_other(root: Path) -> None:
    groups = list(samples_by_image(open_dataset("refcoco/testA")))
    assert [len(group) for group in groups] == [3, 1]


def test_pictures_of_one_name_in_different_folders_stay_apart(root: Path) -> None:
    names = {FIRST: "monday/0001.jpg", SECOND: "tuesday/0001.jpg"}
    for name in names.values():
        write_pictures(root / "images/mscoco/images/train2014" / Path(name).parent, [Path(name).name])
    regions = [annotation(n, n, [polygon(4, 2, 10, 12)], [2, 4, 12, 10]) for n in names]
    for folder in ("refcoco", "grefcoco"):
        write_instances(root / folder, regions, names)
    write_refs(
        root / "refcoco/refs(unc).p",
        [ref(0, FIRST, FIRST, ["dog"], "val"), ref(1, SECOND, SECOND, ["cat"], "val")],
    )
    write_refs(root / "grefcoco/grefs(unc).p", [ref(0, SECOND, [SECOND], ["cat"], "val")])
    groups = list(samples_by_image(open_dataset("refcoco/val")))
    assert [[sample.phrase for sample in group] for group in groups] == [["dog"], ["cat"]]
    rest = open_dataset("refcoco/val?without=grefcoco/val")
    assert [rest[i].phrase for i in range(len(rest))] == ["dog"]


@pytest.mark.parametrize("protocol", [-1, 0, 1, 2])
def test_every_protocol_of_old_pickles_is_read(tmp_path: Path, protocol: int) -> None:
    refs = [ref(0, FIRST, 1, ["it's the café's \\ dog"])]
    write_refs(tmp_path / "refs.p", refs, protocol)
    assert read_plain_pickle(tmp_path / "refs.p") == refs


def test_bytes_that_are_no_utf8_are_latin1(tmp_path: Path) -> None:
    (tmp_path / "refs.p").write_bytes(b"S'caf\\xe9'\n.")
    assert read_plain_pickle(tmp_path / "refs.p") == "café"


class Malicious:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "harm")


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_code_in_a_pickle_never_runs(root: Path, protocol: int) -> None:
    trace = root / "trace"
    evil = pickle.dumps([ref(0, FIRST, 1, ["dog"]), Malicious(trace)], protocol)
    pickle.loads(evil)
    assert trace.exists(), "the pickle does what it threatens"
    trace.unlink()
    (root / "refcoco/refs(unc).p").write_bytes(evil)
    with pytest.raises(DatasetFileError, match=r"refs\(unc\)\.p was not read: it asks for"):
        open_dataset("refcoco/testA")
    assert not trace.exists()


@pytest.mark.parametrize(
    "harm",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(ios\nsystem\n.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x02cposix\nsystem\nq\x00.",
        b"ccopy_reg\n_reconstructor\n.",
        b"P1\n.",
        b"\x82\x01.",
    ],
    ids=["reduce", "instance", "instance with argument", "global", "copy_reg", "persistent", "extension"],
)
def test_opcodes_that_reach_for_code_are_refused(tmp_path: Path, harm: bytes) -> None:
    (tmp_path / "refs.p").write_bytes(harm)
    with pytest.raises(DatasetFileError):
        read_plain_pickle(tmp_path / "refs.p")


def test_a_cut_pickle_is_called_damaged(root: Path) -> None:
    path = root / "refcoco/refs(unc).p"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DatasetFileError, match="is damaged"):
        open_dataset("refcoco/testA")


@pytest.mark.parametrize(("name", "publication"), PUBLICATIONS.items())
def test_every_publication_opens_by_its_name(root: Path, name: str, publication: Any) -> None:
    folder = root / publication.folder
    names = {19579: "19579.jpg"}
    if publication.folder == "refclef":
        write_pictures(root / "images/saiapr_tc-12", list(names.values()))
    else:
        names = COCO_NAMES
    [image_id] = list(names)[:1]
    write_instances(folder, [annotation(7, image_id, [compressed(RING)], [5, 5, 20, 20])], names)
    splits = publication.splits
    refs = [ref(i, image_id, 7, [f"phrase of {split}"], split) for i, split in enumerate(splits)]
    write_refs(folder / f"refs({publication.authors}).p", refs)
    for split in splits:
        dataset = open_dataset(f"{name}/{split}")
        assert [dataset[i].phrase for i in range(len(dataset))] == [f"phrase of {split}"]
        np.testing.assert_array_equal(dataset[0].mask, RING)
        assert dataset[0].sample_id.startswith(f"{name}/{split}/")
    with pytest.raises(DatasetNameError, match=f"no split 'minival'; known: {', '.join(splits)}"):
        open_dataset(f"{name}/minival")


def test_a_reference_of_two_test_sets_is_in_both(root: Path) -> None:
    refs = [ref(0, FIRST, 1, ["dog"], "testAB"), ref(1, FIRST, 2, ["dogs"], "testB")]
    write_refs(root / "refcoco/refs(unc).p", refs)
    assert [len(open_dataset(f"refcoco/{split}")) for split in ("testA", "testB", "val")] == [1, 2, 0]


def test_referit_pictures_in_numbered_folders_are_found(root: Path) -> None:
    write_pictures(root / "images/saiapr_tc-12/19/images", ["19579.jpg"])
    write_instances(
        root / "refclef", [annotation(7, 19579, compressed(RING), [5, 5, 20, 20])], {19579: "19579.jpg"}
    )
    write_refs(root / "refclef/refs(berkeley).p", [ref(0, 19579, 7, ["ring"], "val")])
    np.testing.assert_array_equal(open_dataset("refclef-berkeley/val")[0].mask, RING)


def test_pictures_are_taken_as_they_are_stored(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = root / "images/mscoco/images/train2014" / coco_name(FIRST)
    Image.open(path).save(path, exif=exif)
    assert open_dataset("refcoco/testA")[0].image.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("refcoco/refs(unc).p", r"file of phrases is missing: .*refs\(unc\)\.p; get it from https://.*zip"),
        ("refcoco/instances.json", r"file of regions is missing: .*instances\.json; get it from https://"),
        (
            "images",
            "folder of images is missing: .*mscoco.* and .*train2014; get it from https://cocodataset",
        ),
    ],
)
def test_what_is_missing_is_said_with_its_place_and_source(root: Path, missing: str, message: str) -> None:
    (root / missing).rename(root / "elsewhere")
    with pytest.raises(DatasetFileError, match=message) as caught:
        open_dataset("refcoco/testA")
    assert str(root) in str(caught.value)
    assert DATA_ROOT_VARIABLE in str(caught.value)


def test_a_missing_picture_is_named_when_it_is_needed(root: Path) -> None:
    dataset = open_dataset("refcoco/testA")
    (root / "images/mscoco/images/train2014" / coco_name(SECOND)).unlink()
    assert dataset[0].phrase
    with pytest.raises(DatasetFileError, match=f"no such image: .*{coco_name(SECOND)}"):
        dataset[3]


def test_the_root_can_be_an_option(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_ROOT_VARIABLE, "/nowhere")
    assert len(open_dataset(f"refcoco/testA?root={root}")) == 4
    monkeypatch.setenv("HOME", str(root.parent))
    assert len(open_dataset(f"refcoco/testA?root=~/{root.name}")) == 4
    monkeypatch.setenv(DATA_ROOT_VARIABLE, f"~/{root.name}")
    assert len(open_dataset("refcoco/testA")) == 4
    with pytest.raises(DatasetNameError, match="unknown option rot"):
        open_dataset(f"refcoco/testA?rot={root}")


def test_phrases_are_listed_without_pictures(root: Path) -> None:
    for path in (root / "images").rglob("*.jpg"):
        path.unlink()
    assert phrases_of(open_dataset("refcoco/testA"), 1) == {"the dog on the left", "left dog", "both", "ring"}


def test_several_data_sets_are_one(root: Path) -> None:
    joint = open_dataset(f"refcoco/val + stickers/val?count=1&phrases=2 + refcoco/testA?root={root}")
    assert len(joint) == 1 + 2 + 4
    assert [joint[i].sample_id.split("/")[0] for i in (0, 1, 2, 3, 6)] == [
        "refcoco", "stickers", "stickers", "refcoco", "refcoco",
    ]  # fmt: skip
    with pytest.raises(IndexError):
        joint[7]


def test_pictures_of_other_splits_can_be_left_out(root: Path) -> None:
    rest = open_dataset("refcoco/testA?without=refcoco/val")
    assert [rest[i].phrase for i in range(len(rest))] == ["the dog on the left", "left dog", "both"]
    with pytest.raises(DatasetNameError, match="without='stickers', expected one of: refcoco"):
        open_dataset("refcoco/testA?without=stickers/val")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "it has no polygon"),
        ("mask", "expected polygons or an RLE"),
        ([[1.0, 2.0, 3.0, 4.0]], "no polygon has three corners"),
        ([[1.0, 2.0, 3.0, 4.0, 5.0]], "no polygon has three corners"),
        ({"size": [3, 3], "counts": "04"}, "an RLE is of size"),
        ({"size": [HEIGHT, WIDTH], "counts": [1, 2]}, "add up to 3"),
        ({"size": [HEIGHT, WIDTH]}, "counts of an RLE are NoneType"),
        ([[1, 2, 3, 4, 5, 6], {"size": [HEIGHT, WIDTH], "counts": "0"}], "expected polygons or an RLE"),
    ],
)
def test_a_region_that_is_none_is_refused(segmentation: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segmentation_to_region(segmentation, (HEIGHT, WIDTH))


def test_a_damaged_annotation_is_named(root: Path) -> None:
    write_instances(root / "refcoco", [annotation(1, FIRST, "", [2, 4, 12, 10])], COCO_NAMES)
    write_refs(root / "refcoco/refs(unc).p", [ref(0, FIRST, 1, ["dog"], "testA")])
    with pytest.raises(DatasetFileError, match=r"instances\.json, annotation 1: expected polygons"):
        open_dataset("refcoco/testA")


@pytest.mark.parametrize("segmentation", [[], [[1.0, 2.0, 3.0, 4.0]]])
def test_references_to_empty_annotations_are_left_out(
    root: Path, segmentation: object, caplog: pytest.LogCaptureFixture
) -> None:
    annotations = [
        annotation(1, FIRST, segmentation, [2, 4, 12, 10]),
        annotation(2, FIRST, [polygon(4, 2, 10, 12)], [2, 4, 12, 10]),
    ]
    for folder in ("refcoco", "grefcoco"):
        write_instances(root / folder, annotations, COCO_NAMES)
    write_refs(root / "refcoco/refs(unc).p", [ref(n, FIRST, n, [f"dog {n}"], "testA") for n in (1, 2)])
    write_refs(
        root / "grefcoco/grefs(unc).p",
        [ref(1, FIRST, [1, 2], ["both"], "testA"), ref(2, FIRST, [2], ["dog 2"], "testA")],
    )
    for name in ("refcoco", "grefcoco"):
        assert phrases_of(open_dataset(f"{name}/testA"), 0) == {"dog 2"}
    assert len(caplog.messages) == 2
    assert "references to 1 annotations without a region are left out" in caplog.messages[0]


def test_a_reference_without_its_region_is_named(root: Path) -> None:
    write_refs(root / "refcoco/refs(unc).p", [ref(5, FIRST, 99, ["dog"], "testA")])
    with pytest.raises(DatasetFileError, match=r"reference 5: instances\.json has no annotation 99"):
        open_dataset("refcoco/testA")


def test_a_region_on_another_picture_is_refused(root: Path) -> None:
    write_refs(root / "refcoco/refs(unc).p", [ref(5, SECOND, 1, ["dog"], "testA")])
    with pytest.raises(DatasetFileError, match=f"on image {SECOND}, its region on {FIRST}"):
        open_dataset("refcoco/testA")


def test_memory_does_not_grow_with_what_was_read(root: Path) -> None:
    names = {number: coco_name(number) for number in range(1, 61)}
    folder = root / "images/mscoco/images/train2014"
    for name in names.values():
        Image.fromarray(np.zeros((HEIGHT * 10, WIDTH * 10, 3), np.uint8)).save(folder / name)
    write_instances(
        root / "refcoco",
        [annotation(n, n, [polygon(4, 2, 10, 12)], [2, 4, 12, 10]) for n in names],
        names,
    )
    text = (root / "refcoco/instances.json").read_text()
    (root / "refcoco/instances.json").write_text(
        text.replace(f'"height": {HEIGHT}', f'"height": {HEIGHT * 10}').replace(
            f'"width": {WIDTH}', f'"width": {WIDTH * 10}'
        )
    )
    write_refs(root / "refcoco/refs(unc).p", [ref(n, n, n, ["dog"], "testA") for n in names])
    dataset = open_dataset("refcoco/testA")
    one_picture = dataset[0].image.nbytes
    tracemalloc.start()
    for index in range(60):
        dataset[index]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 3 * one_picture


def test_the_written_pickle_is_python_2s() -> None:
    value = [{"a": [1, "b", 2.5, None, True]}]
    assert pickle.loads(python2_pickle(value), encoding="utf-8") == value


@pytest.mark.slow
def test_a_published_data_set_is_learned_and_measured(root: Path) -> None:
    """Boxes, then masks, then figures: the way of the paper's recipes, on a model that fits here."""
    write_refs(root / "refcoco/refs(unc).p", [ref(0, FIRST, 1, ["left dog"]), ref(1, SECOND, 3, ["ring"])])
    common: dict[str, Any] = {
        "preset": "ssp-sam-test", "data": "refcoco/train", "steps": 2, "batch_size": 2, "target_size": 64,
        "stream": True, "random_placement": True, "flip_probability": 0.5, "device": "cpu",
    }  # fmt: skip
    boxes = train(TrainConfig(stage="rec", output_dir=root / "rec", **common))
    masks = train(
        TrainConfig(output_dir=root / "ssp", init=boxes.weights, embeddings=root / "kept", **common)
    )
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    predictor.load_trainable(read_tensors(masks.weights))
    for protocol in ("original", "paper"):
        result = evaluate(predictor, open_dataset("refcoco/train"), protocol=protocol)
        assert result.counts == {"samples": 2, "images": 2, "no target": 0}
    assert list((root / "kept").rglob("*.safetensors"))
