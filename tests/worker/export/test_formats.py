"""Every format on one hard project: pycocotools, torchvision, the access patterns of published readers."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.datasets import CocoDetection
from typer.testing import CliRunner, Result

from tests.worker.export.sample_project import LABELS, PROJECT, Sample, fill_project
from tests.worker.label_studio_server import LabelStudioServer, region
from worker.cli.commands import app
from worker.export.yolo import quoted
from worker.services import Services

Mask = npt.NDArray[np.bool_]
Json = dict[str, Any]


@pytest.fixture
def sample(label_studio: LabelStudioServer, services: Services) -> Sample:
    return fill_project(label_studio)


def command(*options: object) -> Result:
    done = CliRunner().invoke(app, ["export", "--project", str(PROJECT), *map(str, options)])
    assert done.exit_code == 0, done.output
    return done


def export(folder: Path, file_format: str, *options: object) -> Path:
    out = folder / "labels.json"
    command("--format", file_format, "--out", out, "--images", folder / "images", *options)
    return out


def opened(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


@pytest.mark.parametrize("file_format", ["coco", "coco-polygons"])
def test_coco_holds_everything(sample: Sample, tmp_path: Path, file_format: str) -> None:
    coco = opened(export(tmp_path, file_format))
    assert [(each["id"], each["name"]) for each in coco.loadCats(coco.getCatIds())] == [*enumerate(LABELS, 1)]
    assert [each["file_name"] for each in coco.loadImgs(coco.getImgIds())] == list(sample.pictures)
    names = {each["id"]: each["name"] for each in coco.loadCats(coco.getCatIds())}
    files = {each["id"]: each["file_name"] for each in coco.loadImgs(coco.getImgIds())}
    found = coco.loadAnns(coco.getAnnIds())
    assert len(found) == len(sample.objects)
    for annotation, expected in zip(found, sample.objects, strict=True):
        assert files[annotation["image_id"]] == expected.file_name
        assert (names[annotation["category_id"]], annotation["phrase"]) == (expected.label, expected.phrase)
        np.testing.assert_array_equal(coco.annToMask(annotation).astype(bool), expected.mask)
        assert annotation["area"] == expected.mask.sum()
        assert None not in annotation.values()


@pytest.mark.parametrize("file_format", ["coco", "coco-polygons"])
@pytest.mark.parametrize("kind", ["segm", "bbox"])
def test_coco_eval_finds_everything_in_the_export_itself(
    sample: Sample, tmp_path: Path, file_format: str, kind: str
) -> None:
    truth = opened(export(tmp_path, file_format))
    answers = [{**each, "score": 1.0} for each in truth.loadAnns(truth.getAnnIds())]
    for answer in answers:
        answer["segmentation"] = truth.annToRLE(answer)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(answers), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == 1.0


def test_torchvision_gets_pictures_as_their_masks_lie(sample: Sample, tmp_path: Path) -> None:
    """It knows nothing of EXIF, and turns 16 bits into white: see the table in the documentation."""
    dataset = CocoDetection(str(tmp_path / "images"), str(export(tmp_path, "coco-polygons")))
    assert len(dataset) == len(sample.pictures)
    for (name, expected), (picture, found) in zip(sample.pictures.items(), dataset, strict=True):
        assert (picture.height, picture.width) == expected.shape[:2], name
        difference = np.abs(np.asarray(picture, dtype=int) - expected).mean()
        assert difference <= {"00000002-Фото.jpg": 10, "00000003-deep.png": 255}.get(name, 0), name
        assert len(found) == len(sample.masks(name))


def test_pictures_are_copied_and_turned_ones_written_upright(
    sample: Sample, label_studio: LabelStudioServer, tmp_path: Path
) -> None:
    export(tmp_path, "coco")
    files = {path.relative_to(tmp_path / "images").as_posix(): path for path in _files(tmp_path / "images")}
    assert files.keys() == sample.pictures.keys()
    originals = {unquote(path).rpartition("/")[2]: data for path, data in label_studio.files.items()}
    for name, path in files.items():
        if name in originals and name != "00000002-Фото.jpg":
            assert path.read_bytes() == originals[name], name
    with Image.open(files["00000002-Фото.jpg"]) as upright:
        assert upright.getexif().get(0x0112, 1) == 1
        assert upright.size == (48, 64)


def test_what_is_not_exported_is_counted(sample: Sample, tmp_path: Path) -> None:
    done = command("--out", tmp_path / "labels.json")
    assert "1 key points are left out: a point has no area" in done.stderr
    assert "1 skipped annotations are left out" in done.stderr


def test_a_picture_that_is_gone_is_named_and_its_labels_are_written(
    sample: Sample, label_studio: LabelStudioServer, tmp_path: Path
) -> None:
    del label_studio.files[f"/data/upload/{PROJECT}/00000001-scene.png"]
    done = command("--out", tmp_path / "labels.json", "--images", tmp_path / "images")
    assert "task 1: its picture is missing" in done.stderr
    written = json.loads((tmp_path / "labels.json").read_text())
    assert len(written["annotations"]) == len(sample.objects)


def test_a_region_on_another_size_than_its_picture_is_left_out(
    sample: Sample, label_studio: LabelStudioServer, tmp_path: Path
) -> None:
    label_studio.save(1, 1, region("a", "the cat", np.ones((10, 10), dtype=np.bool_)))
    done = command("--out", tmp_path / "labels.json", "--images", tmp_path / "images")
    assert "region a is left out: it was drawn on 10 x 10 pixels, its picture has 48 x 64" in done.stderr


@pytest.mark.parametrize("pictures", [True, False])
def test_a_pictures_size_is_not_that_of_an_old_region(
    sample: Sample, label_studio: LabelStudioServer, tmp_path: Path, pictures: bool
) -> None:
    new = np.zeros((48, 64), dtype=np.bool_)
    new[3:9, 4:20] = True
    regions = [
        *region("old", "the cat", np.ones((10, 10), dtype=np.bool_)),
        *region("new", "the dog", new),
    ]
    label_studio.save(1, 1, regions)
    out = tmp_path / "labels.json"
    done = command("--out", out, *(["--images", tmp_path / "images"] if pictures else []))
    assert "region old is left out: it was drawn on 10 x 10 pixels, its picture has 48 x 64" in done.stderr
    assert "new" in {annotation["region"] for annotation in json.loads(out.read_text())["annotations"]}


def test_categories_are_the_same_in_every_export(
    sample: Sample, label_studio: LabelStudioServer, tmp_path: Path
) -> None:
    everything = json.loads(export(tmp_path, "coco").read_text())["categories"]
    some = json.loads(export(tmp_path, "coco", "--annotator", "9").read_text())
    assert (some["annotations"], some["categories"]) == ([], everything)


class ReferReader:
    """Reads as https://github.com/lichengunc/refer does: tables by id, masks from `segmentation[0]`."""

    def __init__(self, folder: Path) -> None:
        with (folder / "refs(unc).p").open("rb") as file:
            self.refs = {ref["ref_id"]: ref for ref in pickle.load(file)}
        self._index(json.loads((folder / "instances.json").read_text()))

    def _index(self, instances: Json) -> None:
        self.images = {image["id"]: image for image in instances["images"]}
        self.annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
        self.categories = {category["id"]: category["name"] for category in instances["categories"]}

    def fill(self, annotation: Json) -> Mask:
        image = self.images[annotation["image_id"]]
        assert isinstance(annotation["segmentation"][0], list)
        rles = coco_mask.frPyObjects(annotation["segmentation"], image["height"], image["width"])
        layers = np.asarray(coco_mask.decode(rles)).sum(axis=2)
        assert layers.max() <= 1, "parts do not overlap: the sum is the mask"
        assert sum(int(coco_mask.area(rle)) for rle in rles) == annotation["area"]
        return layers.astype(bool)

    def masks(self) -> Iterator[tuple[str, str, str, Mask]]:
        """File, split, sentence and mask of each reference."""
        for ref in self.refs.values():
            annotation = self.annotations[ref["ann_id"]]
            assert (ref["image_id"], ref["category_id"]) == (
                annotation["image_id"],
                annotation["category_id"],
            )
            for sentence in ref["sentences"]:
                yield ref["file_name"], ref["split"], sentence["sent"], self.fill(annotation)


class GrefReader(ReferReader):
    """Reads as https://github.com/henghuiding/gRefCOCO does: lists of annotations, -1 for none."""

    def __init__(self, folder: Path) -> None:
        self.refs = {ref["ref_id"]: ref for ref in json.loads((folder / "grefs(unc).json").read_text())}
        self._index(json.loads((folder / "instances.json").read_text()))

    def masks(self) -> Iterator[tuple[str, str, str, Mask]]:
        for ref in self.refs.values():
            image = self.images[ref["image_id"]]
            union = np.zeros((image["height"], image["width"]), dtype=np.bool_)
            assert ref["no_target"] == (ref["ann_id"] == [-1]) == (-1 in ref["ann_id"])
            for number in ref["ann_id"]:
                union |= self.fill(self.annotations[number]) if number != -1 else False
            for sentence in ref["sentences"]:
                yield ref["file_name"], ref["split"], sentence["sent"], union


def expressions(sample: Sample) -> dict[tuple[str, str], Mask]:
    """(File, phrase in lower case) -> mask."""
    found = {(each.file_name, each.phrase.lower()): each.mask for each in sample.objects}
    return found | {
        (name, phrase): np.zeros(sample.pictures[name].shape[:2], dtype=np.bool_)
        for name, phrase in sample.absent.items()
    }


def test_refcocos_readers_fill_polygons_to_the_same_pixels(sample: Sample, tmp_path: Path) -> None:
    command("--format", "refcoco", "--out", tmp_path / "refcoco", "--split", "val")
    expected = expressions(sample)
    targets = {key: mask for key, mask in expected.items() if mask.any()}
    for reader, wanted in ((ReferReader, targets), (GrefReader, expected)):
        found = {(name, sent): mask for name, _, sent, mask in reader(tmp_path / "refcoco").masks()}
        assert found.keys() == wanted.keys()
        for key, mask in found.items():
            np.testing.assert_array_equal(mask, wanted[key], err_msg=str(key))


def test_phrases_that_differ_in_case_are_one(
    sample: Sample, label_studio: LabelStudioServer, tmp_path: Path
) -> None:
    """RefCOCO has them in lower case: two references would contradict each other."""
    one, other = np.zeros((2, 48, 64), dtype=np.bool_)
    one[:9, :9], other[20:, 20:] = True, True
    label_studio.save(1, 1, region("a", "The Cat", one) + region("b", "the cat", other))
    command("--format", "refcoco", "--out", tmp_path / "refcoco")
    masks = {
        sent: mask for name, _, sent, mask in GrefReader(tmp_path / "refcoco").masks() if "scene" in name
    }
    np.testing.assert_array_equal(masks["the cat"], one | other)
    assert "00000001-scene.png" not in [name for name, *_ in ReferReader(tmp_path / "refcoco").masks()]


def test_splits_are_by_picture(sample: Sample, label_studio: LabelStudioServer, tmp_path: Path) -> None:
    """Task 10 gets the picture of task 1, under another name."""
    label_studio.files[f"/data/upload/{PROJECT}/00000010-new.png"] = label_studio.files[
        f"/data/upload/{PROJECT}/00000001-scene.png"
    ]
    label_studio.save(10, 10, region("a", "the cat", np.ones((48, 64), dtype=np.bool_), "cat"))
    shares = ("--split", "0.4,0.3,0.3")
    done = command("--out", tmp_path / "instances.json", *shares)
    parts = {
        name: json.loads((tmp_path / f"instances_{name}.json").read_text())
        for name in ("train", "val", "test")
    }
    assert "images of each split: " in done.stdout
    of = {image["file_name"]: name for name, part in parts.items() for image in part["images"]}
    assert len(of) == len(sample.pictures) + 1
    assert len(set(of.values())) > 1
    assert of["00000001-scene.png"] == of["00000010-new.png"]
    assert all(part["categories"] == parts["train"]["categories"] for part in parts.values())

    command("--format", "refcoco", "--out", tmp_path / "refcoco", *shares)
    for name, split, *_ in ReferReader(tmp_path / "refcoco").masks():
        assert split == {"test": "testA"}.get(of[name], of[name])
    command("--format", "png", "--out", tmp_path / "png", *shares)
    lines = [json.loads(line) for line in (tmp_path / "png/masks.jsonl").read_text().splitlines()]
    assert {line["image"]: line["split"] for line in lines}.items() <= of.items()
    assert all(line["file"] is None or line["file"].startswith(line["split"]) for line in lines)
    command("--format", "yolo", "--out", tmp_path / "yolo", *shares)
    for name, split in of.items():
        assert (tmp_path / "yolo/images" / split / name).is_file()


def read_yolo(folder: Path, name: str, hw: tuple[int, int]) -> list[tuple[str, Mask]]:
    """Labels and masks of a picture: outlines as pycocotools fills them, boxes as they are."""
    names = yaml.safe_load((folder / "data.yaml").read_text())["names"]
    found = []
    for line in (folder / "labels/train" / name).with_suffix(".txt").read_text().splitlines():
        number, *values = line.split()
        corners = np.array(values, dtype=float).reshape(-1, 2) * (hw[1], hw[0])
        if len(corners) == 2:
            (x, y), (width, height) = corners
            x0, y0, x1, y1 = x - width / 2, y - height / 2, x + width / 2, y + height / 2
            corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        rles = coco_mask.frPyObjects([corners.ravel().tolist()], *hw)
        found.append((names[int(number)], np.asarray(coco_mask.decode(rles))[..., 0].astype(bool)))
    return found


def test_yolo_outlines_have_holes_and_parts(sample: Sample, tmp_path: Path) -> None:
    command("--format", "yolo", "--out", tmp_path / "yolo")
    described = yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())
    assert described == {"train": "images/train", "val": "images/train", "names": dict(enumerate(LABELS))}
    for name, picture in sample.pictures.items():
        assert (tmp_path / "yolo/images/train" / name).is_file()
        found, expected = read_yolo(tmp_path / "yolo", name, picture.shape[:2]), sample.masks(name)
        assert [label for label, _ in found] == [label for label, _ in expected]
        for (_, mask), (_, true_mask) in zip(found, expected, strict=True):
            np.testing.assert_array_equal(mask, true_mask, err_msg=name)


def test_yolo_boxes(sample: Sample, tmp_path: Path) -> None:
    command("--format", "yolo-detect", "--out", tmp_path / "yolo")
    for name, picture in sample.pictures.items():
        for (label, mask), (true_label, true_mask) in zip(
            read_yolo(tmp_path / "yolo", name, picture.shape[:2]), sample.masks(name), strict=True
        ):
            x, y, width, height = cv2.boundingRect(true_mask.astype(np.uint8))
            box = np.zeros_like(true_mask)
            box[y : y + height, x : x + width] = True
            np.testing.assert_array_equal(mask, box, err_msg=name)
            assert label == true_label


def test_png_with_metadata_pictures_and_label_maps(sample: Sample, tmp_path: Path) -> None:
    out = tmp_path / "png"
    command("--format", "png", "--out", out, "--images", out / "images", "--label-maps")
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    regions = {(each.file_name, each.phrase): each.mask for each in sample.objects}
    assert len(rows) == len(regions)
    for row in rows:
        assert None not in row.values()
        assert row.keys() == rows[0].keys()
        with Image.open(out / row["file_name"]) as mask:
            expected = regions[row["picture_name"], row["phrase"]]
            np.testing.assert_array_equal(np.asarray(mask, dtype=bool), expected)
        assert (out / row["picture_file_name"]).is_file()

    names = json.loads((out / "label-map.json").read_text())
    assert names == {"0": "background", **{str(number): name for number, name in enumerate(LABELS, 1)}}
    for name in sample.pictures:
        with Image.open(out / "label-maps" / f"{name[:-4]}.png") as opened_map:
            numbers = np.asarray(opened_map)
        expected = np.zeros_like(numbers)
        seen: dict[bytes, tuple[Mask, int]] = {}
        for label, mask in sample.masks(name):
            seen.setdefault(mask.tobytes(), (mask, LABELS.index(label) + 1))
        for mask, number in sorted(seen.values(), key=lambda pair: -int(pair[0].sum())):
            expected[mask] = number
        np.testing.assert_array_equal(numbers, expected, err_msg=name)


def test_label_maps_are_for_png_only(sample: Sample, tmp_path: Path) -> None:
    options = ["export", "--project", str(PROJECT), "--out", str(tmp_path / "a.json"), "--label-maps"]
    assert CliRunner().invoke(app, options).exit_code == 2


def test_long_and_strange_region_ids(sample: Sample, label_studio: LabelStudioServer, tmp_path: Path) -> None:
    mask = np.ones((48, 64), dtype=np.bool_)
    label_studio.save(1, 1, [*region("x" * 300, "one", mask), *region("猫/.." * 60, "other", mask)])
    command("--format", "png", "--out", tmp_path / "png")
    rows = [json.loads(line) for line in (tmp_path / "png/metadata.jsonl").read_text().splitlines()]
    assert {"x" * 300, "猫/.." * 60} <= {row["region"] for row in rows}
    assert all((tmp_path / "png" / row["file_name"]).is_file() for row in rows)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["dog", 'a "dog"\\', "犬 😀", "a\x7fb", "a\x85b", "a\u2028b", "\ufeffa"])
def test_every_label_is_a_yaml_string(name: str) -> None:
    assert yaml.safe_load(f"0: {quoted(name)}\n") == {0: name}
