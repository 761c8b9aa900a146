"""The wheel by itself: installed elsewhere, run from a folder with files named like our packages."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.integration.conftest import ROOT, free_port
from tests.test_stray_files import PACKAGES, STRAY
from tests.waiting import wait_until
from tests.worker.label_studio_server import KEY, LabelStudioServer, region

pytestmark = pytest.mark.timeout(900)  # seven commands, each of which imports torch
READY_WITHIN_S = 300.0
COMMAND_S = 240.0
PROJECT = 3


@dataclass(frozen=True)
class Installed:
    """A venv with the wheel, a user who has run nothing, and an empty current folder but for stray files."""

    program: Path
    folder: Path
    home: Path

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        return {**kept, "HOME": str(self.home), "OMP_NUM_THREADS": "1", "DEVICE": "cpu", **more}

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(self.program), *words],
            cwd=self.folder,
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )
        assert done.returncode == 0, done.stderr
        return done

    def made(self) -> set[str]:
        """What the commands have left in the current folder."""
        return {path.name for path in self.folder.iterdir()} - {f"{name}.py" for name in PACKAGES}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(out), str(source)], check=True, timeout=COMMAND_S)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Only the wheel is installed: what it depends on is taken from the environment of the tests."""
    place = tmp_path_factory.mktemp("venv")
    venv.create(place, symlinks=True)
    python = place / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*install, "--no-index", str(wheel)], check=True, timeout=COMMAND_S)
    packages = next((place / "lib").glob("python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    folder = tmp_path_factory.mktemp("current")
    for name in PACKAGES:
        (folder / f"{name}.py").write_text(STRAY)
    return Installed(place / "bin" / "sspsam", folder, tmp_path_factory.mktemp("home"))


@pytest.fixture
def label_studio() -> Iterator[LabelStudioServer]:
    """One project, one picture, one mask."""
    with LabelStudioServer() as server:
        mask = np.zeros((48, 64), dtype=bool)
        mask[8:20, 10:30] = True
        server.add_project(PROJECT)
        server.add_task(7, PROJECT, np.full((48, 64, 3), 90, dtype=np.uint8))
        server.save(11, 7, region("r1", "the square", mask))
        yield server


def test_it_is_the_wheel_that_runs(installed: Installed) -> None:
    python = installed.program.parent / "python"
    code = "import sspsam, finetune, backend, worker; print(sspsam.__file__, worker.__file__)"
    command = [str(python), "-P", "-c", code]
    found = subprocess.check_output(command, cwd=installed.folder, env=installed.environment(), text=True)
    assert found.count(str(installed.program.parents[1])) == 2


def test_commands_leave_nothing_in_the_current_folder(installed: Installed, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.fromarray(np.full((60, 80, 3), 200, dtype=np.uint8)).save(picture)
    predict = ("predict", str(picture), "the dog", "--version", "current", "--json")
    referents = json.loads(installed.run(*predict).stdout)
    assert [referent["phrase"] for referent in referents] == ["the dog"]
    (base,) = json.loads(installed.run("versions", "list", "--json").stdout)
    assert base["serves"]
    assert str(installed.home) in json.loads(installed.run("weights", "list", "--json").stdout)[0]["file"]
    evaluate = ("evaluate", "--dataset", "stickers/val?count=2&phrases=1", "--out", str(tmp_path / "report"))
    installed.run(*evaluate, "--preset", "ssp-sam-test")
    assert (tmp_path / "report" / "evaluation.json").is_file()
    settings = ("preset=ssp-sam-test", "data=stickers/train", "steps=2", "batch_size=2", "workers=1")
    installed.run("train", *settings, f"output_dir={tmp_path / 'run'}")
    assert list((tmp_path / "run").glob("*.safetensors"))
    assert installed.made() == set()


def test_the_service_runs_and_commands_find_it(
    installed: Installed, label_studio: LabelStudioServer, tmp_path: Path
) -> None:
    told = {
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": KEY,
        "PRESET": "ssp-sam-test",
        "OPEN_ACCESS": "true",
        "PORT": str(free_port()),
    }
    screen = tmp_path / "screen.txt"
    with screen.open("wb") as output:
        up = subprocess.Popen(
            [str(installed.program), "up"],
            cwd=installed.folder,
            env=installed.environment(**told),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: is_ready(up, screen), "the service is ready", READY_WITHIN_S)
        assert f":{told['PORT']} " in screen.read_text()
        listed = installed.run("versions", "list", "--json")
        assert json.loads(listed.stdout)[0]["version_id"] == "ssp-sam-test-base"
        line = f"Instance {installed.folder}/.sspsam (sspsam up, running): "
        assert listed.stderr.startswith(line)
        out = tmp_path / "labels.json"
        assert installed.run("export", "--project", str(PROJECT), "--out", str(out)).stderr.startswith(line)
        assert [one["phrase"] for one in json.loads(out.read_text())["annotations"]] == ["the square"]
        assert KEY not in installed.run("finetune", "--project", str(PROJECT)).stderr
        embedded = installed.run("prefetch", "--project", str(PROJECT))
        assert "images embedded: 1" in embedded.stdout, embedded.stderr
    finally:
        up.send_signal(signal.SIGTERM)
        status = up.wait(COMMAND_S)
    assert status == 0
    assert installed.made() == {".sspsam"}
    logs = "".join(path.read_text() for path in (installed.folder / ".sspsam" / "logs").iterdir())
    assert "stray" not in logs


def is_ready(up: subprocess.Popen[bytes], screen: Path) -> bool:
    assert up.poll() is None, screen.read_text()
    return "Ctrl-C stops everything" in screen.read_text()
