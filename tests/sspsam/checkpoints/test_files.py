"""Public weights: the table, pulling with whatever hash is stated, verifying, and the commands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sspsam.checkpoints.convert import card_path
from sspsam.checkpoints.files import RECORDED, WeightsFolder
from sspsam.checkpoints.hub import DownloadError, WrongContentError
from sspsam.checkpoints.registry import HUB_REPOSITORY, PUBLIC_FILES, PublicFile, find_public_file
from sspsam.cli import build_app
from sspsam.predictor import Predictor
from sspsam.presets import PRESETS
from tests.sspsam.file_server import Behaviour, FileServer, hub_listing
from tests.sspsam.published_files import PRESET, golden_bundle, reference_state

CONTENT = bytes(range(256)) * 400
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PATH = "output/refcoco+/336/checkpoint_best_miou.pth"
ON_HUB = f"/{HUB_REPOSITORY}/resolve/main/output/refcoco%2B/336/checkpoint_best_miou.pth"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as running:
        yield running


@pytest.fixture
def folder(server: FileServer, tmp_path: Path) -> WeightsFolder:
    return WeightsFolder(tmp_path / "weights", hub=server.url, pause_s=0)


def published_at(url: str, sha256: str | None = SHA256) -> PublicFile:
    return PublicFile("mine", "a file", f"{url}/mine.pt", "MIT", len(CONTENT), sha256, "its author")


def test_the_table_is_whole() -> None:
    assert [file.name for file in PUBLIC_FILES] == [
        "sam-vit-b", "sam-vit-l", "sam-vit-h", "mobile-sam", "clip-vit-b-16", "clip-vit-l-14-336",
        "ssp-sam-224-grefcoco", "ssp-sam-336-grefcoco", "ssp-sam-224-clip",
    ]  # fmt: skip
    assert len({file.file_name for file in PUBLIC_FILES}) == len(PUBLIC_FILES)
    for file in PUBLIC_FILES:
        assert file.url.startswith("https://")
        assert file.page.startswith("https://")
        assert file.licence in ("Apache-2.0", "MIT")
        assert file.sha256 is None or len(bytes.fromhex(file.sha256)) == 32
    for name in ("clip-vit-b-16", "clip-vit-l-14-336"):
        file = find_public_file(name)
        assert file.url.split("/")[-2] == file.sha256
    with pytest.raises(ValueError, match="unknown weights 'sam-vit-g', expected one of: sam-vit-b, "):
        find_public_file("sam-vit-g")


def test_a_published_hash_must_fit(server: FileServer, folder: WeightsFolder) -> None:
    file = published_at(server.url)
    server.files["/mine.pt"] = Behaviour(b"something else")
    with pytest.raises(WrongContentError):
        folder.pull(file)
    assert folder.verify(file) == "absent"
    server.files["/mine.pt"] = Behaviour(CONTENT)
    record = folder.pull(file)
    assert (record.sha256, record.sha256_from, record.licence) == (SHA256, "its author", "MIT")
    assert (record.fetched_from, record.size_bytes) == (f"{server.url}/mine.pt", len(CONTENT))
    assert folder.verify(file) == "good"


def test_what_is_here_is_not_fetched_again(server: FileServer, folder: WeightsFolder) -> None:
    file = published_at(server.url)
    server.files["/mine.pt"] = Behaviour(CONTENT)
    first = folder.pull(file)
    asked = len(server.asked)
    assert folder.pull(file) == first
    assert len(server.asked) == asked
    folder.path(file).write_bytes(b"damaged")
    assert folder.verify(file) == "damaged"
    folder.pull(file)
    assert folder.verify(file) == "good"


def test_the_hash_that_the_hub_states(server: FileServer, folder: WeightsFolder) -> None:
    server.files[ON_HUB] = Behaviour(CONTENT, hub=True, breaks_after=[65536])
    file = find_public_file(f"hub:{PATH}")
    record = folder.pull(file)
    assert record.sha256 == SHA256
    assert "the hub" in record.sha256_from
    assert folder.path(file).name == "SSP-SAM_output_refcoco+_336_checkpoint_best_miou.pth"
    assert folder.path(file).read_bytes() == CONTENT
    assert folder.files()[-1].name == f"hub:{PATH}"


def test_without_any_hash_the_first_download_counts(server: FileServer, folder: WeightsFolder) -> None:
    server.files[ON_HUB] = Behaviour(CONTENT)
    file = find_public_file(f"hub:{PATH}")
    assert folder.pull(file).sha256_from == RECORDED
    assert folder.verify(file) == "good"
    folder.path(file).unlink()
    server.files[ON_HUB] = Behaviour(b"another file")
    with pytest.raises(WrongContentError):
        folder.pull(file)


def test_a_file_without_a_record_is_unknown(folder: WeightsFolder) -> None:
    file = find_public_file(f"hub:{PATH}")
    folder.folder.mkdir()
    folder.path(file).write_bytes(CONTENT)
    assert folder.verify(file) == "unknown"


def test_mirrors(server: FileServer, tmp_path: Path) -> None:
    file = published_at("http://nowhere.invalid")
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "mine.pt").write_bytes(CONTENT)
    server.files["/models/mine.pt"] = Behaviour(CONTENT)
    for number, mirror in enumerate([str(tmp_path / "mirror"), f"{server.url}/models/"]):
        folder = WeightsFolder(tmp_path / str(number), mirror)
        record = folder.pull(file)
        assert record.fetched_from.startswith(mirror.rstrip("/"))
        assert record.url == file.url
        assert folder.verify(file) == "good"
    with pytest.raises(DownloadError, match=r"there is no file .*mirror/sam_vit_b_01ec64.pth"):
        WeightsFolder(tmp_path / "2", str(tmp_path / "mirror")).pull(find_public_file("sam-vit-b"))


def test_the_hubs_list(server: FileServer, folder: WeightsFolder) -> None:
    server.files[f"/api/models/{HUB_REPOSITORY}"] = hub_listing(
        {PATH: CONTENT, "data_seg/anns/refcoco.json": b"{}"}
    )
    (file,) = folder.hub_files()
    assert (file.name, file.sha256, file.size_bytes) == (f"hub:{PATH}", SHA256, len(CONTENT))
    server.files.clear()
    with pytest.raises(DownloadError, match="the list of files is not available"):
        folder.hub_files()


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(), ["weights", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_commands(server: FileServer, tmp_path: Path) -> None:
    server.files[ON_HUB] = Behaviour(CONTENT, hub=True)
    server.files[f"/api/models/{HUB_REPOSITORY}"] = hub_listing({PATH: CONTENT})
    where = ["--model-dir", str(tmp_path), "--hub", server.url]
    listed = json.loads(run("list", "--json", *where)[1])
    assert [row["here"] for row in listed] == [False] * len(PUBLIC_FILES)
    assert "351 MB; MIT" in run("list", *where)[1]
    assert SHA256 in run("list", "--hub-files", *where)[1]
    assert run("verify", "--model-dir", str(tmp_path)) == (
        0,
        f"nothing to verify in {tmp_path / 'weights'}\n",
    )
    code, output = run("pull", f"hub:{PATH}", *where)
    assert code == 0
    assert SHA256 in output
    assert run("verify", "--model-dir", str(tmp_path)) == (0, f"hub:{PATH}: good\n")
    next((tmp_path / "weights").glob("*.pth")).write_bytes(b"damaged")
    assert run("verify", "--model-dir", str(tmp_path)) == (1, f"hub:{PATH}: damaged\n")
    assert run("verify", "sam-vit-b", "--model-dir", str(tmp_path)) == (1, "sam-vit-b: absent\n")


def test_pull_convert_verify_load(server: FileServer, tmp_path: Path) -> None:
    """A released checkpoint from the hub to a file that serves."""
    torch.save({"model": reference_state(golden_bundle())}, tmp_path / "released.pth")
    server.files[ON_HUB] = Behaviour((tmp_path / "released.pth").read_bytes(), hub=True)
    run("pull", f"hub:{PATH}", "--model-dir", str(tmp_path), "--hub", server.url)
    pulled = tmp_path / "weights" / "SSP-SAM_output_refcoco+_336_checkpoint_best_miou.pth"
    bundle = tmp_path / "ssp.safetensors"
    code, output = run("convert", str(pulled), "--preset", PRESET, "--out", str(bundle))
    assert code == 0
    assert "tensors" in output
    (source,) = json.loads(card_path(bundle).read_text())["sources"]
    assert (source["published_as"], source["licence"]) == (f"hub:{PATH}", "Apache-2.0")
    assert Predictor.from_preset(PRESET, "cpu", bundle).model.preset is PRESETS[PRESET]
    assert run("verify", str(bundle)) == (0, f"{bundle}: good\n")
    bundle.write_bytes(bundle.read_bytes() + b"x")
    assert run("verify", str(bundle))[0] == 1


def test_sources_by_name_must_be_here(tmp_path: Path) -> None:
    arguments = ["--preset", PRESET, "--out", str(tmp_path / "a.safetensors"), "--model-dir", str(tmp_path)]
    code, output = run("convert", "sam-vit-b", *arguments)
    assert code == 2
    assert "sspsam weights pull sam-vit-b" in output
