"""From a model's name to weights that can be loaded: checks, downloads and the conversion, once.

Errors:
    NotEnoughError: the disk or the memory does not suffice, and it was not confirmed; nothing was started
    DownloadError: a file is unavailable (`sspsam.checkpoints.hub`)
    ModelError: unknown model, or a file has another content than expected
"""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sspsam.checkpoints.convert import card_path, convert
from sspsam.checkpoints.files import WeightsFolder
from sspsam.checkpoints.hub import Progress
from sspsam.checkpoints.load import CheckpointError
from sspsam.checkpoints.ready_models import (
    GPU_MIN_BYTES,
    SUBFOLDER,
    WITH_GPU,
    WITHOUT_GPU,
    ModelError,
    PublishedModel,
    ReadyModel,
    find_model,
    find_ready,
)
from sspsam.checkpoints.registry import PublicFile, find_public_file
from sspsam.files import replacing

SPARE_DISK_BYTES = 200 * 10**6
"""Left on the disk beside the downloads and the bundle."""


class NotEnoughError(Exception):
    """The machine does not have what a model needs."""


@dataclass(frozen=True)
class Machine:
    """What the machine has left."""

    disk_bytes: int
    memory_bytes: int
    gpu_bytes: int
    """Total memory of the selected GPU; 0 without one."""

    @classmethod
    def here(cls, folder: Path, device: str) -> Machine:
        """This machine.

        Args:
            folder: that the files go to; need not exist.
            device: auto, cpu, cuda or cuda:<number>.
        """
        from sspsam.runtime.capacity import available_memory_bytes, gpu_memory_bytes

        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
        return cls(shutil.disk_usage(existing).free, available_memory_bytes(), gpu_memory_bytes(device))


@dataclass(frozen=True)
class WantedFile:
    """A published file of a model."""

    file: PublicFile
    missing_bytes: int | None
    """0 if it is downloaded; None if its size is unknown."""


@dataclass(frozen=True)
class Plan:
    """What is needed to make a model ready."""

    model: PublishedModel
    wanted: tuple[WantedFile, ...]
    machine: Machine
    folder: Path

    @property
    def download_bytes(self) -> int:
        """Of the files with known size."""
        return sum(wanted.missing_bytes or 0 for wanted in self.wanted)

    @property
    def disk_bytes(self) -> int:
        """For what is still missing and for the converted file."""
        return self.download_bytes + self.model.bundle_bytes + SPARE_DISK_BYTES

    def shortages(self, to_serve: bool = True) -> list[str]:
        """What the machine lacks, and what to do about it.

        Args:
            to_serve: whether the model is to be loaded on this machine.
        """
        short = []
        if self.disk_bytes > self.machine.disk_bytes:
            short.append(
                f"disk: {_gb(self.disk_bytes)} are needed in {self.folder}, {_gb(self.machine.disk_bytes)} "
                "are free. Free some space, or choose another disk with MODEL_DIR"
            )
        if to_serve and (memory := memory_shortage(self.model, self.machine)):
            short.append(memory)
        return short

    def describe(self) -> list[str]:
        """One line a file, and one of the sums."""
        lines = [
            f"{wanted.file.name}: {wanted.file.what}, {_state(wanted)}, licence {wanted.file.licence}"
            for wanted in self.wanted
        ]
        unknown = " and a file of unknown size" if any(w.missing_bytes is None for w in self.wanted) else ""
        lines.append(
            f"To download: {_gb(self.download_bytes)}{unknown}. Disk: {_gb(self.disk_bytes)} of "
            f"{_gb(self.machine.disk_bytes)} free in {self.folder}. Memory to serve it: "
            f"{_gb(self.model.memory_bytes)} of {_gb(self.machine.memory_bytes)} available."
        )
        return lines


def memory_shortage(model: PublishedModel, machine: Machine) -> str:
    """What to do about too little memory; empty if there is enough."""
    if model.memory_bytes <= machine.memory_bytes:
        return ""
    smaller = "" if model.preset == WITHOUT_GPU else f", or choose a smaller model: --model {WITHOUT_GPU}"
    return (
        f"memory: {_gb(model.memory_bytes)} are needed, {_gb(machine.memory_bytes)} are available. Stop "
        f"other programs or raise the container's limit{smaller}"
    )


class Reporter(Protocol):
    """Where progress is shown."""

    def say(self, line: str) -> None: ...

    def downloading(self, file: PublicFile) -> AbstractContextManager[Progress]: ...


def choose(gpu_bytes: int) -> tuple[PublishedModel, str]:
    """The model for photographs that suits a machine, and the reason."""
    if gpu_bytes >= GPU_MIN_BYTES:
        return find_model(WITH_GPU), f"a GPU with {_gb(gpu_bytes)}"
    found = f"its GPU has {_gb(gpu_bytes)}" if gpu_bytes else "no GPU"
    return find_model(WITHOUT_GPU), f"{found}, and SAM's ViT-H needs a GPU with {_gb(GPU_MIN_BYTES)}"


def plan(model: PublishedModel, folder: WeightsFolder, machine: Machine) -> Plan:
    """Finds what is missing. Only sizes that the table lacks are asked of the server.

    Raises:
        DownloadError: the server cannot be reached.
    """
    files = [find_public_file(name) for name in model.files]
    wanted = tuple(WantedFile(file, folder.missing_bytes(file)) for file in files)
    return Plan(model, wanted, machine, folder.folder)


def prepare(
    model: PublishedModel,
    folder: WeightsFolder,
    machine: Machine,
    reporter: Reporter,
    go_on: Callable[[Sequence[str]], bool],
    to_serve: bool = True,
) -> ReadyModel:
    """Makes a model ready: at once if it was converted before, else with downloads and the conversion.

    Args:
        model: of the table.
        folder: of the downloaded weights.
        machine: what it has left.
        reporter: shows what happens.
        go_on: is given shortages, and says whether to start nevertheless.
        to_serve: whether the model is to be loaded on this machine.

    Raises:
        NotEnoughError, DownloadError, ModelError: see the module.
    """
    if ready := find_ready(model, folder.folder):
        if to_serve and (shortage := memory_shortage(model, machine)):  # never refused: it may be a restart
            reporter.say(f"Not enough {shortage}")
        return ready
    with _one_at_a_time(folder.folder / SUBFOLDER, reporter):
        if ready := find_ready(model, folder.folder):  # made by the process that held the lock
            return ready
        needed = plan(model, folder, machine)
        for line in needed.describe():
            reporter.say(line)
        if (short := needed.shortages(to_serve)) and not go_on(short):
            raise NotEnoughError("not started, for lack of " + "; ".join(short))
        for wanted in needed.wanted:
            with reporter.downloading(wanted.file) as progress:
                folder.pull(wanted.file, progress)
        reporter.say(f"Converting to one file, once: {folder.folder / SUBFOLDER}")
        return _converted(model, folder)


def _converted(model: PublishedModel, folder: WeightsFolder) -> ReadyModel:
    place = folder.folder / SUBFOLDER
    sources = [folder.path(find_public_file(name)) for name in model.files]
    with tempfile.TemporaryDirectory(prefix=".new-", dir=place) as aside:
        made = Path(aside) / f"{model.preset}.safetensors"
        try:
            card = convert(sources, model.preset, made)
        except CheckpointError as error:
            raise ModelError(
                f"{error}. The layout of a published file has changed, or a file of your own is another one: "
                f"`sspsam weights pull {model.files[0]} --file PATH` replaces it, `sspsam weights convert` "
                "joins checkpoints of your own, to be served with --model FILE.safetensors"
            ) from error
        bundle = place / f"{model.preset}-{card.sha256[:12]}.safetensors"
        made.replace(bundle)
        card_path(made).replace(card_path(bundle))
        card_path(bundle).touch()  # later than the bundle, whose sha256 was just computed
    return ReadyModel(model.preset, bundle)


def copy_bundle(ready: ReadyModel, out: Path) -> str:
    """Copies a converted bundle and its card to another place.

    Returns:
        Its sha256.

    Raises:
        ModelError: the packaged model has no bundle, or `out` is not named as safetensors.
    """
    if ready.weights is None:
        raise ModelError(f"{ready.preset} is in the package: there is nothing to carry")
    if out.suffix != ".safetensors":
        raise ModelError(f"expected a file named .safetensors to write, got {out}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as staged:
        shutil.copyfile(ready.weights, staged)
    card = card_path(ready.weights).read_text(encoding="utf-8")
    card_path(out).write_text(card, encoding="utf-8")
    return str(json.loads(card)["sha256"])


@contextmanager
def _one_at_a_time(folder: Path, reporter: Reporter) -> Iterator[None]:
    """Lets one process at a time download and convert; others wait and find the result."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            reporter.say(f"Another process prepares weights in {folder}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob(".new-*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        yield


def _state(wanted: WantedFile) -> str:
    if wanted.missing_bytes == 0:
        return "downloaded"
    return "size unknown" if wanted.missing_bytes is None else f"{_gb(wanted.missing_bytes)} to download"


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
