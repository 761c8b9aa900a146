"""A model by its name: downloads and conversion once, then no network. With small files."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from PIL import Image

from sspsam.checkpoints import preparing, ready_models, registry
from sspsam.checkpoints.bundles import load_bundle
from sspsam.checkpoints.convert import _expected
from sspsam.checkpoints.files import WeightsFolder
from sspsam.checkpoints.hub import DownloadError
from sspsam.checkpoints.preparing import Machine, NotEnoughError, choose, copy_bundle, plan, prepare
from sspsam.checkpoints.ready_models import (
    GPU_MIN_BYTES,
    MODELS,
    SUBFOLDER,
    ModelError,
    PublishedModel,
    ReadyModel,
    find_model,
    find_ready,
    note_choice,
    of_file,
    ready_without_choosing,
)
from sspsam.checkpoints.registry import HUB_REPOSITORY, PublicFile, hub_file
from sspsam.cli import main, models
from sspsam.cli.models import adopt_ready_model, use_model
from sspsam.files import sha256_of_file
from tests.sspsam.file_server import Behaviour, FileServer
from tests.sspsam.published_files import (
    PRESET,
    golden_bundle,
    reference_state,
    sam_state,
    save_openai_archive,
    training_pickle,
    without,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("preparing"),  # the module's fixtures are made once
]

ENOUGH = Machine(10**12, 10**12, 0)
ON_HUB = f"/{HUB_REPOSITORY}/resolve/main/tiny.pth"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authors' training pickle, OpenAI's archive, and SAM, at the test preset's size."""
    folder, bundle = tmp_path_factory.mktemp("originals"), golden_bundle()
    torch.save(training_pickle(without("encoder.", reference_state(bundle))), folder / "tiny.pth")
    save_openai_archive(bundle, folder / "clip.pt")
    torch.save(sam_state(bundle), folder / "sam.pth")
    return folder


@dataclass
class Reporter:
    lines: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def downloading(self, file: PublicFile) -> nullcontext[object]:
        self.lines.append(f"downloading {file.name}")
        return nullcontext(lambda done, total: None)


@dataclass
class Tiny:
    """A published model of small files, and the server that has them."""

    model: PublishedModel
    server: FileServer
    folder: WeightsFolder
    reporter: Reporter = field(default_factory=Reporter)

    def prepare(self, machine: Machine = ENOUGH, go_on: bool = False, to_serve: bool = True) -> ReadyModel:
        return prepare(self.model, self.folder, machine, self.reporter, lambda short: go_on, to_serve)

    def gets(self) -> list[str]:
        return [path for method, path, _ in self.server.asked if method == "GET"]


@pytest.fixture
def tiny(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tiny]:
    with FileServer() as server:
        files = [hub_file("tiny.pth", "tiny-ssp-sam")]
        for name in ("clip.pt", "sam.pth"):
            path = originals / name
            files.append(
                PublicFile(
                    f"tiny-{path.stem}", name, f"{server.url}/{name}", "MIT", path.stat().st_size,
                    sha256_of_file(path), "its author", "https://page.example",
                )
            )  # fmt: skip
            server.files[f"/{name}"] = Behaviour(path.read_bytes())
        server.files[ON_HUB] = Behaviour((originals / "tiny.pth").read_bytes(), hub=True)
        model = PublishedModel(PRESET, tuple(file.name for file in files), 10**6, 10**9)
        monkeypatch.setattr(registry, "PUBLIC_FILES", tuple(files))
        monkeypatch.setitem(ready_models.MODELS, PRESET, model)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield Tiny(model, server, WeightsFolder(tmp_path / "models" / "weights", hub=server.url, pause_s=0))


def test_the_first_start_downloads_and_converts_and_the_second_does_neither(tiny: Tiny) -> None:
    ready = tiny.prepare()
    assert tiny.gets() == [ON_HUB, f"/cdn{ON_HUB}", "/clip.pt", "/sam.pth"]
    assert ready.weights is not None
    assert ready.weights.name == f"{PRESET}-{sha256_of_file(ready.weights)[:12]}.safetensors"
    model, _ = load_bundle(ready.preset, ready.weights)
    assert torch.equal(model.state_dict()["fusion.weight"], golden_bundle()["fusion.weight"])
    tiny.server.asked.clear()
    tiny.reporter.lines.clear()
    assert tiny.prepare() == ready
    assert tiny.server.asked == []
    assert tiny.reporter.lines == []
    for file in tiny.folder.folder.glob("*.p*"):  # the downloads are needed no more
        file.unlink()
    assert tiny.prepare() == ready


def test_what_is_needed_is_said_before_anything_begins(tiny: Tiny) -> None:
    tiny.prepare()
    first = tiny.reporter.lines.index("downloading tiny-ssp-sam")
    text = "\n".join(tiny.reporter.lines[:first])
    assert "tiny-clip: clip.pt" in text
    assert "licence MIT" in text
    assert "licence Apache-2.0" in text
    size = sum(len(tiny.server.files[path].content) for path in (ON_HUB, "/clip.pt", "/sam.pth"))
    assert f"To download: {size / 1e9:.2f} GB. Disk:" in text
    assert "Memory to serve it: 1.00 GB of 1000.00 GB available" in text


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (replace(ENOUGH, disk_bytes=10**6), r"disk: 0\.21 GB are needed in .*weights, 0\.00 GB .*MODEL_DIR"),
        (replace(ENOUGH, memory_bytes=10**6), r"memory: 1\.00 GB are needed, 0\.00 GB .*--model ssp-sam-224"),
    ],
    ids=["disk", "memory"],
)  # fmt: skip
def test_a_machine_that_is_too_small(tiny: Tiny, machine: Machine, expected: str) -> None:
    with pytest.raises(NotEnoughError, match=expected):
        tiny.prepare(machine)
    assert tiny.gets() == []
    assert tiny.prepare(machine, go_on=True).weights
    assert tiny.prepare(machine).weights, "a restart is not refused"


def test_memory_does_not_matter_for_a_bundle(tiny: Tiny) -> None:
    assert tiny.prepare(replace(ENOUGH, memory_bytes=1), to_serve=False).weights


def test_the_model_for_photographs_is_chosen_by_the_gpu() -> None:
    assert choose(0)[0].preset == "ssp-sam-224-with-mobile"
    assert choose(GPU_MIN_BYTES - 1)[0].preset == "ssp-sam-224-with-mobile"
    assert choose(GPU_MIN_BYTES)[0].preset == "ssp-sam-224"
    assert choose(GPU_MIN_BYTES)[1] == "a GPU with 8.59 GB"
    with pytest.raises(ModelError, match=r"'photo', expected one of: stickers, photographs, ssp-sam-224"):
        find_model("photo")


def test_a_download_that_breaks_off_resumes_at_the_next_start(tiny: Tiny) -> None:
    content = tiny.server.files[ON_HUB].content
    tiny.server.files[ON_HUB].breaks_after = [70_000] + [0] * 10
    with pytest.raises(DownloadError, match="the download resumes"):
        tiny.prepare()
    assert not find_ready(tiny.model, tiny.folder.folder)
    tiny.server.files[ON_HUB].breaks_after = []
    tiny.server.asked.clear()
    assert tiny.prepare().weights
    asked = [wanted for wanted in tiny.server.ranges(f"/cdn{ON_HUB}") if wanted]
    assert asked
    assert int(asked[0].removeprefix("bytes=").rstrip("-")) <= len(content)


def test_a_mirror_folder_takes_the_place_of_the_internet(tiny: Tiny, originals: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for name, local in (("tiny.pth", "SSP-SAM_tiny.pth"), ("clip.pt", "clip.pt"), ("sam.pth", "sam.pth")):
        (mirror / local).write_bytes((originals / name).read_bytes())
    tiny.folder = WeightsFolder(tmp_path / "other", str(mirror), tiny.server.url)
    assert tiny.prepare().weights
    assert tiny.server.asked == []
    (mirror / "clip.pt").unlink()
    tiny.folder = WeightsFolder(tmp_path / "third", str(mirror), tiny.server.url)
    with pytest.raises(DownloadError, match=r"there is no file .*mirror/clip\.pt"):
        tiny.prepare()


def test_a_bundle_serves_on_another_machine(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "stick" / "photographs.safetensors"
    out_sha256 = copy_bundle(tiny.prepare(), out)
    assert sha256_of_file(out) == out_sha256
    assert ready_without_choosing(str(out), tmp_path / "none") == ReadyModel(PRESET, out)
    content = out.read_bytes()
    out.write_bytes(content[:-10])
    with pytest.raises(ModelError, match="damaged or incomplete"):
        of_file(out)
    out.write_bytes(content[:-4] + b"\1\1\1\1")
    with pytest.raises(ModelError, match=r"is not the file that its card photographs\.json describes"):
        of_file(out)
    out.with_suffix(".json").unlink()
    assert of_file(out).preset == PRESET, "without a card there is nothing to compare with"
    for wrong in (tmp_path / "none.safetensors", tmp_path / "stick"):
        with pytest.raises(ModelError, match="no file"):
            of_file(wrong)
    with pytest.raises(ModelError, match="in the package"):
        copy_bundle(ReadyModel("ssp-sam-demo", None), out)
    with pytest.raises(ModelError, match=r"named \.safetensors"):
        copy_bundle(tiny.prepare(), tmp_path / "photographs.pt")


def test_a_damaged_bundle_is_made_again(tiny: Tiny) -> None:
    ready = tiny.prepare()
    assert ready.weights is not None
    content = ready.weights.read_bytes()  # made again byte for byte: versions name its sha256
    later = time.time_ns() + 10**9
    os.utime(ready.weights, ns=(later, later))  # as after a restored backup
    assert find_ready(tiny.model, tiny.folder.folder) == ready
    ready.weights.write_bytes(content[:-4] + b"\1\1\1\1")
    os.utime(ready.weights, ns=(later + 1, later + 10**9))
    tiny.server.asked.clear()
    assert tiny.prepare() == ready
    assert ready.weights.read_bytes() == content
    assert tiny.gets() == []
    ready.weights.write_bytes(content[:-4])
    assert tiny.prepare() == ready
    ready.weights.with_suffix(".json").write_text("{")
    assert tiny.prepare() == ready


def test_another_published_file_makes_another_bundle(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.prepare()
    changed = tuple(replace(file, sha256="0" * 64) if file.sha256 else file for file in registry.PUBLIC_FILES)
    monkeypatch.setattr(registry, "PUBLIC_FILES", changed)
    assert not find_ready(tiny.model, tiny.folder.folder)


def test_a_checkpoint_of_ones_own_makes_another_bundle(tiny: Tiny, tmp_path: Path) -> None:
    before = tiny.prepare()
    bundle = golden_bundle()
    bundle["fusion.weight"] = bundle["fusion.weight"] + 1
    torch.save(reference_state(bundle), tmp_path / "own.pth")
    tiny.folder.place(registry.PUBLIC_FILES[0], tmp_path / "own.pth")
    after = tiny.prepare()
    assert after != before
    assert after.weights is not None
    model, _ = load_bundle(PRESET, after.weights)
    assert torch.equal(model.state_dict()["fusion.weight"], bundle["fusion.weight"])


def test_a_changed_layout_is_explained(tiny: Tiny, tmp_path: Path) -> None:
    older = {f"net.{name}": value for name, value in reference_state(golden_bundle()).items()}
    torch.save(older, tmp_path / "own.pth")
    tiny.folder.place(registry.PUBLIC_FILES[0], tmp_path / "own.pth")
    with pytest.raises(
        ModelError, match=r"layout of a published file has changed.*pull tiny-ssp-sam --file PATH"
    ):
        tiny.prepare()
    assert list((tiny.folder.folder / SUBFOLDER).glob("*.safetensors")) == []


def test_processes_prepare_one_after_the_other(tiny: Tiny) -> None:
    found: list[ReadyModel] = []
    threads = [Thread(target=lambda: found.append(tiny.prepare())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 3
    assert tiny.gets().count("/clip.pt") == 1
    assert any("Another process prepares weights" in line for line in tiny.reporter.lines)


def test_what_a_killed_process_left_is_removed(tiny: Tiny) -> None:
    left = tiny.folder.folder / SUBFOLDER / ".new-killed"
    left.mkdir(parents=True)
    (left / "part").write_bytes(b"1")
    tiny.prepare()
    assert not left.exists()


def test_processes_without_the_gpu_follow_the_choice(tiny: Tiny) -> None:
    folder = tiny.folder.folder
    assert ready_without_choosing("photographs", folder) is None
    ready = tiny.prepare()
    assert ready_without_choosing("photographs", folder) is None
    note_choice(ready.preset, folder)
    assert ready_without_choosing("photographs", folder) == ready
    assert ready_without_choosing(PRESET, folder) == ready
    assert ready_without_choosing("stickers", folder) == ReadyModel("ssp-sam-demo", None)


def test_followers_wait_for_the_latest_choice_and_notice_the_next(
    command_line: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the first GPU of a machine: what an earlier start chose is ready, and is not served."""
    folder = command_line.folder.folder
    noted: list[str] = []

    def backend() -> None:
        monkeypatch.setattr(preparing, "prepare", prepare_and_look)
        use_model("photographs")

    def prepare_and_look(*arguments: Any) -> ReadyModel:
        noted.append(json.loads((folder / SUBFOLDER / "photographs.json").read_text())["preset"])
        return prepare(*arguments)

    note_choice("ssp-sam-224", folder)
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setattr(preparing, "WITHOUT_GPU", command_line.model.preset)
    monkeypatch.setattr(models, "CHOICE_POLL_S", 0.05)
    started = Thread(target=backend)
    started.start()
    is_outdated = use_model("photographs", follow=True)
    started.join()
    assert noted == [PRESET], "before it was prepared"
    assert os.environ["PRESET"] == PRESET
    assert not is_outdated()
    note_choice("ssp-sam-224", folder)
    assert is_outdated()


def test_partial_downloads_count(tiny: Tiny) -> None:
    tiny.folder.folder.mkdir(parents=True)
    whole = plan(tiny.model, tiny.folder, ENOUGH)
    (tiny.folder.folder / ".sam.pth.part").write_bytes(b"1" * 1000)
    assert plan(tiny.model, tiny.folder, ENOUGH).download_bytes == whole.download_bytes - 1000


def test_damaged_cards_are_no_bundles(tiny: Tiny) -> None:
    ready = tiny.prepare()
    assert ready.weights is not None
    card_path = ready.weights.with_suffix(".json")
    card = json.loads(card_path.read_text())
    wrong: Sequence[object] = [[], None, {}, {**card, "sources": 3}, {**card, "complete": False},
                               {**card, "sources": [4]}, {**card, "preset": 1}]  # fmt: skip
    for content in wrong:
        card_path.write_text(json.dumps(content))
        assert find_ready(tiny.model, tiny.folder.folder) is None


@pytest.mark.slow
def test_the_stated_sizes_are_those_of_the_tensors() -> None:
    for model in MODELS.values():
        size = sum(
            value.numel() * (2 if name.startswith("clip.") else value.element_size())
            for name, value in _expected(model.preset, for_training=False).items()
        )
        assert model.bundle_bytes == pytest.approx(size, rel=0.01), model.preset


@pytest.fixture
def command_line(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """The environment of commands, which they change."""
    for variable in ("PRESET", "WEIGHTS", "SAM_ENCODER", "MODEL", "WEIGHTS_MIRROR"):
        monkeypatch.setenv(variable, "")
    monkeypatch.setenv("MODEL_DIR", str(tmp_path / "models"))
    monkeypatch.setattr(Machine, "here", lambda folder, device: ENOUGH)
    return tiny


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_commands_take_a_model_by_its_name(
    command_line: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, out = tmp_path / "picture.png", tmp_path / "stick.safetensors"
    Image.new("RGB", (60, 40), "red").save(picture)
    predict = ("predict", str(picture), "the dog", "--json", "--device", "cpu")
    assert run(*predict, "--model", PRESET) == 0
    shown = capsys.readouterr()
    (first,) = json.loads(shown.out)
    assert "Converting to one file, once" in shown.err
    command_line.server.asked.clear()
    monkeypatch.setenv("PRESET", "")
    monkeypatch.setenv("WEIGHTS", "")
    assert run("weights", "bundle", PRESET, "--out", str(out)) == 0
    monkeypatch.setenv("MODEL", str(out))
    assert run(*predict) == 0
    assert json.loads(capsys.readouterr().out.split("\n", 2)[2]) == [first]
    assert os.environ["WEIGHTS"] == str(out)
    assert command_line.server.asked == []


def test_commands_refuse_what_contradicts_the_model(
    command_line: Tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("predict", "none.png", "dog", "--model", "photos") == 2
    assert "unknown model 'photos'" in capsys.readouterr().err
    assert run("predict", "none.png", "dog", "--model", "stickers", "--preset", "ssp-sam-224") == 2
    monkeypatch.setenv("PRESET", "")  # of the command before
    monkeypatch.setenv("WEIGHTS", "mine.safetensors")
    assert run("predict", "none.png", "dog", "--model", PRESET) == 2
    assert "WEIGHTS=mine.safetensors" in re.sub(r"[^\w=.]", "", capsys.readouterr().err)  # of a box
    assert command_line.server.asked == []


def test_too_little_memory_ends_a_command_without_a_terminal(
    command_line: Tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "here", lambda folder, device: replace(ENOUGH, memory_bytes=1))
    assert run("predict", "none.png", "dog", "--model", PRESET) == 1
    assert "not started, for lack of memory: 1.00 GB are needed" in capsys.readouterr().err
    assert command_line.gets() == []


def test_a_ready_model_is_that_of_every_command(command_line: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", PRESET)
    adopt_ready_model()
    assert os.environ["PRESET"] == ""
    ready = command_line.prepare()
    adopt_ready_model()
    assert {name: os.environ[name] for name in ready.variables} == ready.variables
    monkeypatch.setenv("PRESET", "")
    monkeypatch.setenv("WEIGHTS", "")
    monkeypatch.setenv("MODEL", "gpt")  # of another program
    adopt_ready_model()
    assert os.environ["PRESET"] == ""
