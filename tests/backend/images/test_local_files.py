"""Images from local files: only below the roots set by the operator."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backend.errors import ImageFormatError, ImageMissingError, SettingsError
from backend.images.local_files import read_local
from backend.settings import Settings


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    (folder / "a b.png").write_bytes(b"picture")
    (folder / "deep" / "inside.png").symlink_to(folder / "a b.png")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "pictures-of-others").mkdir()
    (tmp_path / "pictures-of-others" / "b.png").write_bytes(b"secret")
    (folder / "out.png").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    return folder


def test_a_file_below_a_root_is_read(root: Path) -> None:
    assert read_local(f"file://{root}/a%20b.png", [root], 100) == b"picture"
    assert read_local(f"file://localhost{root}/deep/../a%20b.png", [root], 100) == b"picture"
    assert read_local(f"file://{root}/deep/inside.png", [root], 100) == b"picture"


@pytest.mark.parametrize(
    "path",
    [
        "/../secret",
        "/%2e%2e/secret",
        "/out.png",
        "/up/secret",
        "/../pictures-of-others/b.png",
        "/loop",
        "/loop/a.png",
        "/pipe",
        "/deep",
        "/a%00.png",
        "",
    ],
)
def test_nothing_else_is(root: Path, path: str) -> None:
    with pytest.raises((ImageMissingError, ImageFormatError)) as raised:
        read_local(f"file://{root}{path}", [root], 100)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "file://evil.example/etc/passwd", "file:a.png", "file://["]
)
def test_without_roots_no_file_is(url: str) -> None:
    with pytest.raises(ImageMissingError):
        read_local(url, [], 100)


def test_a_large_file_is_not_read_to_its_end(root: Path) -> None:
    with pytest.raises(ImageFormatError, match="larger than 3 bytes"):
        read_local(f"file://{root}/a%20b.png", [root], 3)


@pytest.mark.parametrize("roots", ["/", "pictures", "/data,/"])
def test_a_root_is_an_absolute_folder_and_not_all(roots: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_ROOTS", roots)
    with pytest.raises(SettingsError, match="IMAGE_ROOTS"):
        Settings()


def test_roots_and_hosts_are_lists_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_ROOTS", "/data/a, /data/b")
    monkeypatch.setenv("IMAGE_HOSTS", "cdn.example.com, *.example.org:8443")
    settings = Settings()
    assert settings.image_roots == (Path("/data/a"), Path("/data/b"))
    assert [rule.host for rule in settings.image_host_rules] == ["cdn.example.com", "*.example.org"]
