"""Exports of hostile names and texts: files stay inside, have names for every system, and can be read."""

from __future__ import annotations

import json
import pickle
import re
import time
import unicodedata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.worker.label_studio_server import LabelStudioServer, region
from worker.export.coco import CocoWriter, RefCocoWriter
from worker.export.file_names import FileNames, name_of
from worker.export.png import INDEX, METADATA, PngWriter
from worker.export.reader import ProjectReader, export
from worker.services import Services

PROJECT = 3
ADDRESSES = [
    "/data/upload/3/../../../../etc/passwd",
    "/data/local-files/?d=../../../etc/passwd",
    "/data/local-files/?d=/etc/passwd",
    "/data/local-files/?d=C:\\Windows\\system32\\a.png",
    "/data/local-files/?d=\\\\server\\share\\a.png",
    "/data/local-files/?d=a/..\\..\\b.png",
    "/data/local-files/?d=%2e%2e/%2e%2e/a.png",
    "s3://bucket/../../a.png",
    "s3://bucket//a.png",
    "s3://bucket/a\x00b\x1b[2J\x9b\u202e.png",
    "s3://bucket/CON.png",
    "s3://bucket/con",
    "s3://bucket/com1.tar.jpg",
    "s3://bucket/NUL/aux/lpt¹.png",
    "s3://bucket/a. /b.../c .png ",
    "s3://bucket/.. /a.png",
    "s3://bucket/\ud800.png",
    "s3://bucket/" + "é" * 300 + ".png",
    "s3://bucket/" + "a/" * 500 + "b.png",
    "s3://bucket/" + "." * 300,
    "http://[",
    "//",
    "?",
    "",
    "..",
    "data:image/png;base64,../../a.png",
    "https://host/a.png?x=" + "y" * 10_000,
    "https://host/%2e%2e%2f%2e%2e%2fa.png",
    "https://host/get?file=../../../a.png",
    "/tasks/7/resolve/?fileuri=" + "Li4vLi4vYS5wbmc",
]
RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)


@pytest.mark.parametrize("address", ADDRESSES)
def test_names_of_pictures_are_names_everywhere(address: str) -> None:
    name = FileNames().unique(name_of(address, 7), 7)
    assert name
    assert len(name.encode()) < 4096
    for part in name.split("/"):
        assert part not in ("", ".", "..")
        assert len(part.encode()) <= 200
        assert not re.search(r'[<>:"|?*\\]', part)
        assert {unicodedata.category(character) for character in part}.isdisjoint(
            {"Cc", "Cf", "Cs", "Zl", "Zp"}
        )
        assert part == part.strip().rstrip(". ")
        assert not RESERVED.fullmatch(part)


def test_names_that_are_one_on_some_systems_are_told_apart() -> None:
    names = FileNames()
    spellings = [
        "Caf\u00e9.png",
        "CAFE\u0301.png",
        "caf\u00e9.PNG",
        "cafe\u0301.jpg",
        "STRASSE.png",
        "stra\u00dfe.png",
    ]
    given = [names.unique(name_of(f"s3://b/{name}", number), number) for number, name in enumerate(spellings)]
    folded = {unicodedata.normalize("NFC", name.rpartition(".")[0].casefold()) for name in given}
    assert len(folded) == len(spellings)


def test_many_tasks_of_one_name_take_linear_time() -> None:
    names, since_s = FileNames(), time.thread_time()
    for number in range(20_000):
        names.unique("a.jpg", number)
    assert time.thread_time() - since_s < 2


TEXTS = [
    "\ud800",
    "=cmd|' /C calc'!A0",
    "</script><b>",
    "a\nb\u2028c",
    "\x00\x1b[2J",
    '"',
    "\\",
    "{{x}}",
    "é" * 500,
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_of_annotators_are_written_as_they_are(
    services: Services,
    label_studio: LabelStudioServer,
    mask: npt.NDArray[np.bool_],
    tmp_path: Path,
    text: str,
) -> None:
    """A lone surrogate ended the export."""
    label_studio.add_project(PROJECT)
    for number in (31, 32):
        label_studio.add_task(number, PROJECT, np.full((*mask.shape, 3), number, dtype=np.uint8))
        label_studio.save(number, number, region(f"r{text if number == 31 else ''}", f"x{text}", mask))

    def reader() -> ProjectReader:
        return ProjectReader(services.label_studio, PROJECT, services.image_hw)

    one, two, three = reader(), reader(), reader()
    export(one, PngWriter(tmp_path / "masks", one))
    export(two, CocoWriter(tmp_path / "coco.json", two))
    export(three, RefCocoWriter(tmp_path / "refs", three))
    lines = [json.loads(line) for line in (tmp_path / "masks" / INDEX).read_text().split("\n") if line]
    phrase = " ".join(f"x{text}".split())
    assert {line["label_studio_task"] for line in lines} == {31, 32}
    assert {line["phrase"] for line in lines} == {phrase}
    described = (tmp_path / "masks" / METADATA).read_text().split("\n")
    assert [json.loads(line)["phrase"] for line in described if line] == [phrase] * 2
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert {entry["phrase"] for entry in coco["annotations"]} == {phrase}
    refs = pickle.loads((tmp_path / "refs" / "refs(unc).p").read_bytes())
    assert {ref["sentences"][0]["raw"] for ref in refs} == {phrase}
    outside = {path.name for path in tmp_path.iterdir()} - {"masks", "coco.json", "refs", "models"}
    assert outside == set()
