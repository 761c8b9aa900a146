"""A data root with RefCOCO in its published format."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.data.files import DATA_ROOT_VARIABLE
from tests.finetune.published import (
    COCO_NAMES,
    FIRST,
    RING,
    SECOND,
    annotation,
    compressed,
    polygon,
    ref,
    uncompressed,
    write_instances,
    write_pictures,
    write_refs,
)

TWO_PARTS = [polygon(4, 2, 10, 12), polygon(20, 30, 10, 20)]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with RefCOCO."""
    monkeypatch.setenv(DATA_ROOT_VARIABLE, str(tmp_path))
    write_pictures(tmp_path / "images/mscoco/images/train2014", list(COCO_NAMES.values()))
    annotations = [
        annotation(1, FIRST, [polygon(4, 2, 10, 12)], [2, 4, 12, 10]),
        annotation(2, FIRST, TWO_PARTS, [2, 4, 48, 26]),
        annotation(3, SECOND, compressed(RING), [5, 5, 20, 20]),
        annotation(4, SECOND, uncompressed(RING), [5, 5, 20, 20], crowd=1),
    ]
    write_instances(tmp_path / "refcoco", annotations, COCO_NAMES)
    refs = [
        ref(0, FIRST, 1, ["the dog on the left", "left dog"], "testA"),
        ref(1, SECOND, 3, ["ring"], "testA"),
        ref(2, FIRST, 2, ["both"], "testA"),
        ref(3, SECOND, 4, ["crowd"], "val"),
    ]
    write_refs(tmp_path / "refcoco/refs(unc).p", refs, protocol=-1)
    return tmp_path
