"""TorchScript archives: the same tensors as torch.jit.load, and nothing runs."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from sspsam.checkpoints.load import CheckpointError, read_tensors
from sspsam.checkpoints.torchscript import is_torchscript, read_torchscript
from tests.sspsam.published_files import golden_bundle, save_openai_archive

pytestmark = pytest.mark.xdist_group("torchscript")  # the module's fixtures are made once


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "ViT-B-16.pt"
    save_openai_archive(golden_bundle(), path)
    return path


def test_the_tensors_are_those_that_torch_reads(archive: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.jit.load(str(archive)).state_dict()
    found = read_torchscript(archive)
    assert found.keys() == expected.keys()
    assert len(found) > 50
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


class Mixed(nn.Module):
    """What a scripted module may hold beside its state: containers, numbers, tensors that are none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes, self.factors, self.flags, self.pair = [1, 2], [0.5], [True], (1, 2.0)
        self.table = {"a": 1}
        self.plain, self.others = torch.zeros(3), [torch.ones(1)]
        self.weight = nn.Parameter(torch.arange(6.0)[2:4])
        self.register_buffer("steps", torch.tensor(7))
        self.layers = nn.ModuleList([nn.Linear(2, 2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        numbers = self.sizes[0] + self.factors[0] + len(self.flags) + self.pair[1] + self.table["a"]
        return x * self.weight + numbers + self.plain.sum() + self.others[0] + self.steps


def test_only_the_state_is_read(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Mixed()).save(str(tmp_path / "mixed.pt"))
        expected = torch.jit.load(str(tmp_path / "mixed.pt")).state_dict()
    found = read_torchscript(tmp_path / "mixed.pt")
    assert found.keys() == expected.keys() == {"weight", "steps", "layers.0.weight", "layers.0.bias"}
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_other_files_are_no_archives(tmp_path: Path, archive: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "state.pt")
    (tmp_path / "text.pt").write_text("no zip")
    assert [is_torchscript(path) for path in (archive, tmp_path / "state.pt", tmp_path / "text.pt")] == [
        True, False, False,
    ]  # fmt: skip


def test_the_file_is_mapped_and_never_written(archive: Path) -> None:
    before = archive.read_bytes()
    read_torchscript(archive)["logit_scale"].fill_(9)
    assert archive.read_bytes() == before


class Payload:
    """What an attacker would pickle."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def with_program(archive: Path, path: Path, program: bytes) -> Path:
    """The archive with another data.pkl."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, program if info.filename.endswith("/data.pkl") else old.read(info))
    return path


def test_code_in_an_archive_does_not_run(archive: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    evil = with_program(archive, tmp_path / "evil.pt", pickle.dumps(Payload(trace), protocol=2))
    with pytest.raises(
        CheckpointError, match=r"evil.pt contains more than tensors .* does not need posix.mkdir"
    ):
        read_tensors(evil)
    assert not trace.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cbuiltins\neval\n(V1\ntR.",  # a builtin
        b"ctorch\nload\n(V/etc/passwd\ntR.",  # a function of torch
        b"ctorch.jit\nload\n(V/etc/passwd\ntR.",
        b"ctorch._utils\n_rebuild_device_tensor_from_numpy\n.",
        b"(Vstorage\ncbuiltins\neval\nV0\nVcpu\nK\x01tQ.",  # a storage whose type is code
    ],
    ids=["eval", "torch.load", "torch.jit.load", "rebuild", "storage"],
)
def test_only_tensors_can_be_named(archive: Path, tmp_path: Path, program: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"does not need|expected a storage"):
        read_tensors(with_program(archive, tmp_path / "evil.pt", program))


@pytest.mark.parametrize(
    "program", [b"ctorch._utils\n_rebuild_tensor_v2\n(I1\ntR.", b"ctorch\nHalfStorage\n)R.", b"R."]
)
def test_nonsense_is_refused(archive: Path, tmp_path: Path, program: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"nonsense.pt"):
        read_tensors(with_program(archive, tmp_path / "nonsense.pt", program))


def test_a_tensor_outside_its_storage_is_refused(archive: Path, tmp_path: Path) -> None:
    program = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nK\x01tQ"
        b"K\x00(M\xff\xfft(K\x01tI00\nNtR."
    )
    with pytest.raises(CheckpointError, match="damaged"):
        read_tensors(with_program(archive, tmp_path / "wide.pt", program))


@pytest.mark.parametrize("size", [100, 20_000])
def test_a_cut_archive_is_refused(archive: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.pt"
    path.write_bytes(archive.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"cut.pt"):
        read_tensors(path)
