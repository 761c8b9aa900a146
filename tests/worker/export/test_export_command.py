"""The command `sspsam export`: what it prints, and what reaches standard output."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from backend.errors import ExportError, LabelStudioUnauthorized
from tests.terminal import Terminal
from tests.worker.export.exporting import PROJECT, Mask, command
from tests.worker.label_studio_server import LabelStudioServer, absent, region
from worker.services import Services

pytestmark = pytest.mark.usefixtures("project")


@pytest.mark.parametrize("file_format", ["coco", "coco-polygons", "refcoco", "png"])
def test_standard_output_holds_the_export_and_nothing_else(
    services: Services, label_studio: LabelStudioServer, mask: Mask, tmp_path: Path, file_format: str
) -> None:
    """As a container without a folder of the host's gives it out; messages go to standard error."""
    label_studio.save(1, 1, [*region("a", "the ring", mask), absent("a zebra")])
    label_studio.save(2, 1, region("b", "the ring", ~mask))  # several of a task, which is said
    out = tmp_path / "labels"
    assert command("--format", file_format, "--out", str(out)).exit_code == 0
    done = command("--format", file_format, "--out", "-")
    assert done.exit_code == 0, done.output
    assert "masks: 2" in done.stderr
    assert "several annotations" in done.stderr
    if out.is_dir():
        with tarfile.open(fileobj=io.BytesIO(done.stdout_bytes)) as archive:
            archive.extractall(tmp_path / "unpacked", filter="data")
        written = {path.name: path.read_bytes() for path in out.iterdir()}
        unpacked = {path.name: path.read_bytes() for path in (tmp_path / "unpacked").iterdir()}
        assert unpacked.keys() == written.keys()
        for name in written.keys() - {"instances.json"}:  # which has the time of day
            assert unpacked[name] == written[name]
    else:
        whole, streamed = json.loads(out.read_text()), json.loads(done.stdout_bytes)
        assert {**streamed, "info": None} == {**whole, "info": None}


def test_nothing_of_an_export_that_failed_reaches_standard_output(
    services: Services, label_studio: LabelStudioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "refused")
    done = command("--out", "-")
    assert isinstance(done.exception, LabelStudioUnauthorized)
    assert done.stdout_bytes == b""


def test_the_command_chooses_and_says_that_annotators_are_not_merged(
    services: Services, label_studio: LabelStudioServer, mask: Mask, tmp_path: Path
) -> None:
    label_studio.save(1, 1, region("a", "the ring", mask))
    label_studio.save(2, 1, region("b", "a ring", mask), completed_by={"id": 9})
    out = str(tmp_path / "labels.json")

    both = command("--out", out)
    one = command("--out", out, "--annotator", "b@example.com", "--since", "2026-01-01")
    nobody = command("--out", out, "--annotator", "c@example.com")

    assert "masks: 2, images: 1" in both.stdout
    assert "1 images have several annotations" in both.stderr
    assert "masks: 1, images: 1" in one.stdout
    assert "several" not in one.stderr
    assert nobody.exit_code == 2
    assert "b@example.com" in nobody.output


def test_yolo_gets_one_annotation_of_an_image(
    services: Services, label_studio: LabelStudioServer, mask: Mask, tmp_path: Path
) -> None:
    label_studio.save(1, 1, region("a", "the ring", mask), ground_truth=True)
    label_studio.save(2, 1, region("b", "a ring", ~mask), updated_at="2026-11-30T12:00:00Z")
    done = command("--format", "yolo", "--out", str(tmp_path / "labels"))
    assert done.exit_code == 0, done.output
    assert "masks: 1, images: 1" in done.stdout
    assert "1 annotations are left out" in done.stderr
    assert "completed_by" not in done.stderr
    [labels] = [path for path in tmp_path.rglob("*.txt") if path.read_text()]
    assert len(labels.read_text().splitlines()) == 1


@pytest.mark.parametrize("file_format", ["png", "yolo", "yolo-detect"])
def test_pictures_cannot_be_the_folder_of_the_export_itself(
    services: Services, label_studio: LabelStudioServer, mask: Mask, tmp_path: Path, file_format: str
) -> None:
    label_studio.save(1, 1, region("a", "the ring", mask))
    out = str(tmp_path / "labels")
    done = command("--format", file_format, "--out", out, "--images", f"{out}/")
    assert isinstance(done.exception, ExportError)
    assert f"--images {out}/images" in str(done.exception)
    assert not (tmp_path / "labels").exists()
    assert command("--format", file_format, "--out", out, "--images", f"{out}/images").exit_code == 0


@pytest.mark.slow
def test_a_bar_shows_how_far_it_is(
    services: Services, label_studio: LabelStudioServer, mask: Mask, tmp_path: Path
) -> None:
    for number in (1, 2):
        label_studio.save(number, number, region("a", "the ring", mask))

    with Terminal("export", "--project", str(PROJECT), "--out", str(tmp_path / "labels.json")) as terminal:
        assert terminal.wait() == 0

    tasks = len(label_studio.tasks)
    assert f"{tasks}/{tasks}" in terminal.text
    assert "Tasks ━" in terminal.text
    assert "masks: 2, images: 2" in terminal.text
