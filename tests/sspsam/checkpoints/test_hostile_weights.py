"""Malicious weight files: refused with a reason, without executing code, in bounded memory."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sspsam
from sspsam.checkpoints.bundles import load_bundle
from sspsam.checkpoints.load import CheckpointError, read_tensors, trainable_state, write_tensors
from sspsam.version_store.store import CARD, CURRENT, WEIGHTS, DamagedVersionError, VersionCard, VersionStore

PRESET = "ssp-sam-test"
MIB = 2**20
MEMORY_MIB = 160
"""What refusing a file may take at most; each of these asks for gigabytes."""


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, function: object, *arguments: object) -> None:
        self._what = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self._what


def packed_again(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Copies an archive with its entries packed, which torch never does."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


def safetensors(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def write_all(folder: Path) -> list[str]:
    """Writes the files; each of their names says what is wrong with it."""
    mark = folder / "code-has-run"
    plain = {"a": torch.zeros(4)}
    torch.save({"a": Runs(os.system, f"touch {mark}")}, folder / "reduce.pth")
    torch.save({"model": Runs(eval, f"open({str(mark)!r}, 'w')")}, folder / "eval.pth")
    legacy = {"a": Runs(os.system, f"touch {mark}")}
    torch.save(legacy, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"a": Runs(bytearray, 10**10)}, folder / "bytearray.pth")
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, folder / "repeated.pth")
    torch.save({"a": torch.zeros(3).to_sparse()}, folder / "sparse.pth")
    torch.save(plain, folder / "plain.pth")
    packed_again(
        folder / "plain.pth",
        folder / "packed-pickle.pth",
        lambda name, data: b"\x80\x02" + b"N0" * (200 * MIB) if name.endswith("data.pkl") else data,
    )
    packed_again(
        folder / "plain.pth",
        folder / "packed-tensor.pth",
        lambda name, data: bytes(800 * MIB) if name.endswith("data/0") else data,
    )
    (folder / "plain.pth").rename(folder / "inner.bin")
    with zipfile.ZipFile(folder / "nested.pth", "w") as archive:
        archive.write(folder / "inner.bin", "archive/data.pkl")
    (folder / "deep.pth").write_bytes(b"\x80\x02" + b"(" * 1_000_000 + b".")
    (folder / "empty.pth").write_bytes(b"")
    (folder / "text.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 20)
    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    for name, content in {
        "header-of-exabytes": struct.pack("<Q", 2**62) + b"{}",
        "shape-of-exabytes": safetensors({"a": one | {"shape": [10**9, 10**9]}}, bytes(4)),
        "negative-shape": safetensors({"a": one | {"shape": [-1]}}, bytes(4)),
        "overlapping": safetensors({"a": one, "b": one}, bytes(4)),
        "unknown-dtype": safetensors({"a": one | {"dtype": "PICKLE"}}, bytes(4)),
        "deep-header": safetensors(b'{"a":' + b"[" * 1_000_000),
        "cut": safetensors({"a": one | {"shape": [100], "data_offsets": [0, 400]}}, bytes(8)),
        "pickle-inside": (folder / "reduce.pth").read_bytes(),
        "no-bytes": b"",
    }.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".pth", ".safetensors"))


READ = """
import sys
from pathlib import Path
from sspsam.checkpoints.load import CheckpointError, read_tensors
def peak():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) // 1024
for name in sys.argv[2:]:
    before = peak()
    try:
        said = f"read {sorted(read_tensors(Path(sys.argv[1]) / name))}"
    except CheckpointError as error:
        said = f"CheckpointError: {error}".replace(chr(10), " ")
    print(peak() - before, name, said[:500], sep="|")
"""


@pytest.mark.slow
def test_malicious_files_are_refused_with_bounded_memory(tmp_path: Path) -> None:
    """In a process of its own, whose peak counts."""
    names = write_all(tmp_path)
    assert len(names) > 18

    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path), *names], capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 0, done.stderr
    lines = [line.split("|") for line in done.stdout.splitlines()]
    assert [name for _, name, _ in lines] == names
    for grown_mib, name, said in lines:
        assert said.startswith("CheckpointError: "), (name, said)
        assert len(said) > len("CheckpointError: ") + 10, name
        assert int(grown_mib) < MEMORY_MIB, (name, grown_mib)
    assert not (tmp_path / "code-has-run").exists()


@pytest.fixture(scope="module")
def model() -> sspsam.SSPSAM:
    torch.manual_seed(0)
    return sspsam.build_model(PRESET)


def changed(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    key = next(key for key, value in state.items() if value.ndim == 2)
    value = state[key].clone()
    if kind == "missing":
        return {name: tensor for name, tensor in state.items() if name != key}
    if kind == "unexpected":
        return {**state, "backdoor": value}
    if kind == "many unexpected":
        return {**state, **{f"k{number}": torch.zeros(0) for number in range(1_000)}}
    if kind == "not finite":
        value[0, 0] = float("nan")
    return {**state, key: {"shape": value.T.contiguous()[:1], "int64": value.long()}.get(kind, value)}


REASONS = [
    ("missing", "missing: "),
    ("unexpected", "unexpected: backdoor"),
    ("many unexpected", "and 950 more"),
    ("not finite", "not finite: "),
    ("shape", "of another shape"),
    ("int64", "torch.int64 for torch.float32"),
]


@pytest.mark.parametrize(("kind", "reason"), REASONS)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    model: sspsam.SSPSAM, kind: str, reason: str
) -> None:
    before = {key: value.clone() for key, value in trainable_state(model).items()}
    with pytest.raises(CheckpointError, match=reason) as raised:
        sspsam.checkpoints.load.load_trainable(model, changed(dict(before), kind))
    assert len(str(raised.value)) < 5000
    for key, value in trainable_state(model).items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize(("kind", "reason"), REASONS)
def test_what_does_not_fit_does_not_serve(
    model: sspsam.SSPSAM, tmp_path: Path, kind: str, reason: str
) -> None:
    encoder = sspsam.build_image_encoder(model.preset.image_encoder)
    state = {f"image_encoder.{key}": value for key, value in encoder.state_dict().items()}
    path = tmp_path / "weights.safetensors"
    write_tensors(path, changed(model.state_dict(), kind) | state)
    with pytest.raises(CheckpointError, match=reason):
        load_bundle(PRESET, path)


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.bin", "weights"])
def test_only_safetensors_are_served(tmp_path: Path, name: str) -> None:
    """A pickle is converted first, on request: sspsam weights convert."""
    torch.save({"a": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        sspsam.Predictor.from_preset(PRESET, "cpu", tmp_path / name)


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    store = VersionStore(tmp_path, PRESET)
    store.publish({"a": torch.zeros(4)}, VersionCard(), {"report.md": "good"})
    return store


def test_versions_hold_the_sha256_of_every_file_and_are_checked_when_loaded(store: VersionStore) -> None:
    (card,) = store.list()[1:]
    folder = store.path(card.version_id)
    assert set(card.sha256) == {path.name for path in folder.iterdir()} - {CARD} == {WEIGHTS, "report.md"}
    for name in card.sha256:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DamagedVersionError, match=name):
            store.load(card.version_id)
        (folder / name).write_bytes(content)
    assert set(store.load(card.version_id)) == {"a"}


@pytest.mark.parametrize(
    "card",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"sha256": []}',
        b'{"sha256": {"../../secret": "0"}}',
        b'{"sha256": {}}',
    ],
)
def test_a_card_that_is_none_is_a_damaged_version(store: VersionStore, card: bytes) -> None:
    version = store.list()[1].version_id
    (store.path(version) / CARD).write_bytes(card)
    with pytest.raises(DamagedVersionError):
        store.load(version)
    store.list()


@pytest.mark.parametrize(
    "state", ["", "[]", "{}", '{"version_id": 7, "stack": [], "history": []}', "[" * 100_000]
)
def test_a_damaged_current_file_is_named(store: VersionStore, state: str) -> None:
    (store.folder / CURRENT).write_text(state)
    with pytest.raises(DamagedVersionError, match=CURRENT):
        store.current()


def test_reading_has_its_limits_from_the_file_itself(tmp_path: Path) -> None:
    """What is good stays good."""
    state = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(3, dtype=torch.float16)}
    torch.save({"model": state}, tmp_path / "good.pth")
    read = read_tensors(tmp_path / "good.pth")
    assert torch.equal(read["a"], state["a"])
    assert torch.equal(read["b"], state["b"])
