"""File names from every kind of address."""

from __future__ import annotations

import base64

import pytest

from worker.export.file_names import PART_BYTES, FileNames, extension_of, name_of

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(40)).decode()
STORED = base64.urlsafe_b64encode(b"s3://bucket/photos/cat 1.jpg").decode().rstrip("=")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("/data/upload/7/3bcd762a-shapes.png", "3bcd762a-shapes.png"),
        ("/label-studio/data/upload/7/3bcd762a-shapes.png", "3bcd762a-shapes.png"),
        ("/data/local-files/?d=photos/2024/cat.jpg", "photos/2024/cat.jpg"),
        ("/data/local-files/?d=photos%2F2024%2Fcat.jpg", "photos/2024/cat.jpg"),
        ("http://localhost:8080/data/local-files/?d=/photos/../../etc/cat.jpg", "photos/etc/cat.jpg"),
        ("/data/local-files/?d=photos\\cat.jpg", "photos/cat.jpg"),
        ("s3://bucket/photos/cat.jpg", "photos/cat.jpg"),
        ("gs://bucket/Fotos/Кот.png", "Fotos/Кот.png"),
        ("azure-blob://container/cat.tiff", "cat.tiff"),
        (f"/tasks/12/resolve/?fileuri={STORED}", "photos/cat 1.jpg"),
        (f"https://ls.example/tasks/12/presign/?fileuri={STORED}", "photos/cat 1.jpg"),
        ("https://pictures.example/a/scene%201.png?size=big", "scene 1.png"),
        ("https://pictures.example/get?file=photos/cat.jpg", "cat.jpg"),
        ("https://pictures.example/image/17", "17"),
        ("https://pictures.example/", "task-5"),
        ("file:///data/photos/cat.jpg", "cat.jpg"),
        (f"data:image/jpeg;base64,{PNG}", "task-5.png"),
        ("data:image/webp,unknown", "task-5.webp"),
        ("data:,unknown", "task-5"),
        ('https://pictures.example/a:b"c|d?.png', "a_b_c_d"),
        ("https://[", "["),
        ("", "task-5"),
    ],
)
def test_names_follow_from_the_address(address: str, expected: str) -> None:
    assert name_of(address, 5) == expected


def test_names_fit_file_systems() -> None:
    one = name_of(f"/data/upload/1/{'猫' * 300}.jpg", 1)
    other = name_of(f"/data/upload/1/{'猫' * 301}.jpg", 1)
    assert one != other
    for name in (one, other):
        assert extension_of(name) == ".jpg"
        assert len(name.encode()) <= PART_BYTES


def test_names_are_unique_without_extension_and_case() -> None:
    """Many tools keep a picture by its name without the extension, and some file systems ignore case."""
    names = FileNames()
    given = [
        names.unique(name, task)
        for task, name in enumerate(["cat.jpg", "2-cat.jpg", "CAT.png", "a/cat.jpg", "a/cat.png", "cat.jpg"])
    ]
    assert given == ["cat.jpg", "2-cat.jpg", "2-2-CAT.png", "a/cat.jpg", "a/4-cat.png", "5-cat.jpg"]
