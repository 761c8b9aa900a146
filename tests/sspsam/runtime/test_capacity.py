"""Memory that is left: of the machine, or of the container."""

from pathlib import Path

import psutil
import pytest
import torch

from sspsam.runtime.capacity import available_memory_bytes, gpu_memory_bytes


@pytest.mark.parametrize(
    ("limit", "used", "stat", "expected"),
    [
        ("1000000", "400000", "", 600_000),
        ("1000000", "400000", "anon 1\ninactive_file 100000\nodd line here\n", 700_000),
        ("1000", "5000", "", 0),
    ],
    ids=["limited", "file cache is given up", "above its limit"],
)
def test_a_container_s_limit(tmp_path: Path, limit: str, used: str, stat: str, expected: int) -> None:
    for name, text in (("memory.max", limit), ("memory.current", used), ("memory.stat", stat)):
        (tmp_path / name).write_text(f"{text}\n")
    assert available_memory_bytes(tmp_path) == expected


@pytest.mark.parametrize("limit", ["max", "", None])
def test_a_machine_without_limit(tmp_path: Path, limit: str | None) -> None:
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text("400000")
    assert available_memory_bytes(tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.3)


def test_without_a_gpu_there_is_no_memory_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_memory_bytes("auto") == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu_memory_bytes("cpu") == 0
    properties = {0: 8, 1: 24}
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda index: type("Properties", (), {"total_memory": properties[index]}),
    )
    assert [gpu_memory_bytes(device) for device in ("auto", "cuda", "cuda:1")] == [8, 8, 24]
