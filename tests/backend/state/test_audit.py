"""The audit log is complete, bounded and private."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from backend.state import audit
from backend.state.audit import ACTIONS, SIGN_INS, AuditLog


def noted(log: AuditLog, count: int, **changes: bool) -> None:
    for number in range(count):
        log.note("10.0.0.1", "operator", "promote", f"version {number}", "done", **changes)


def test_entries_come_back_newest_first(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit")
    assert log.latest(10) == []
    noted(log, 1)
    log.note("::1", "viewer", "sign in", "", "done", sign_in=True)
    assert {entry.action for entry in log.latest(10)} == {"promote", "sign in"}
    assert len(log.latest(1)) == 1


def test_files_are_bounded_and_sign_ins_displace_no_action(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "FILE_MAX_BYTES", 2000)
    log = AuditLog(tmp_path)
    noted(log, 3)
    noted(log, 200, sign_in=True)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert max(sizes.values()) <= 2000
    assert sizes.keys() >= {ACTIONS, SIGN_INS, f"{SIGN_INS}.1"}
    assert {"version 0", "version 1", "version 2"} <= {entry.subject for entry in log.latest(1000)}
    assert "version 199" in {entry.subject for entry in log.latest(1000)}


def test_one_entry_is_one_line_however_long(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.note("a", "operator", "x\ny" * 10**5, "\u2028", "o")
    assert (tmp_path / ACTIONS).read_bytes().count(b"\n") == 1
    assert (tmp_path / ACTIONS).stat().st_size < 2000
    assert [entry.subject for entry in log.latest(9)] == ["\u2028"]


def test_only_the_service_reads_it(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit")
    noted(log, 1)
    assert stat.S_IMODE((tmp_path / "audit").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "audit" / ACTIONS).stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", [b"{", b"[]\n", b'{"at": 1}\n', b"\xff\xfe\n"])
def test_a_damaged_line_hides_no_other(tmp_path: Path, damage: bytes) -> None:
    log = AuditLog(tmp_path)
    noted(log, 1)
    with (tmp_path / ACTIONS).open("ab") as file:
        file.write(damage + b"\n")
    noted(log, 1)
    assert len(log.latest(10)) == 2


def test_a_full_disk_stops_no_action(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "audit").write_text("no folder")
    log = AuditLog(tmp_path / "audit")
    noted(log, 1)
    assert "cannot be written" in caplog.text
    assert log.latest(1) == []
