"""A crash in the middle of any step leaves no half version."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from sspsam.version_store.objects import VersionObjects
from sspsam.version_store.store import (
    VersionStore,
)
from tests.sspsam.version_store.test_places import (
    FIRST,
    PRESET,
    SECOND,
    MakeStore,
    ids,
    objects_on_disk,
    publish,
)


class Crash(BaseException):
    """Not an Exception: nothing may tidy up after it but what a killed process would leave to others."""


class CrashingMemory(MemoryFileSystem):
    """The memory that all share, through a client that dies at a given change."""

    cachable = False
    changes_left = sys.maxsize

    def _change(self) -> None:
        self.changes_left -= 1
        if self.changes_left < 0:
            raise Crash

    def put_file(self, *arguments: Any, **options: Any) -> None:
        self._change()
        super().put_file(*arguments, **options)

    def pipe_file(self, *arguments: Any, **options: Any) -> None:
        self._change()
        super().pipe_file(*arguments, **options)

    def rm_file(self, path: str) -> None:
        self._change()
        super().rm_file(path)


Step = Callable[[VersionStore], object]


STEPS: dict[str, Step] = {
    "publish": lambda store: publish(store, 7.0),
    "promote": lambda store: store.promote(FIRST),
    "rollback": lambda store: store.rollback(),
}


def check_whole(store: VersionStore, before: list[str], serves: set[str]) -> None:
    """Every version is whole; none that was there is gone, and one that may serve does."""
    assert ids(store)[: len(before)] == before
    assert len(ids(store)) <= len(before) + 1
    for version_id in ids(store):
        assert set(store.load(version_id)) == {"w"}
    assert store.current() in serves


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_any_change_of_an_object_store_leaves_no_half_version(tmp_path: Path, step: str) -> None:
    for changes in range(100):
        url = f"memory://{uuid.uuid4().hex}"
        store = VersionStore(tmp_path / f"{changes}", PRESET, url=url)
        publish(store)
        store.promote(publish(store).version_id)
        before = ids(store)
        dying = VersionStore(tmp_path / f"{changes}-dying", PRESET)
        filesystem = CrashingMemory()
        filesystem.changes_left = changes
        dying.files = VersionObjects(url, PRESET, tmp_path / f"{changes}-fetched", filesystem)
        try:
            STEPS[step](dying)
        except Crash:
            check_whole(store, before, {SECOND, FIRST, store.base_version})
            publish(store)
            store.promote(FIRST)
            check_whole(store, ids(store), {FIRST})
        else:
            assert changes > 0
            return
    pytest.fail("it never ended")


def in_a_process_that_dies(folder: Path, operations: int, work: Callable[[], object]) -> bool:
    """Does work in a forked process, which ends without a word before its nth operation on files of a folder.

    Returns:
        Whether it came to the end of the work.
    """
    pid = os.fork()
    if pid == 0:
        left = operations

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            if event.split(".")[0] in ("open", "os", "shutil") and any(
                str(folder) in str(argument) for argument in arguments
            ):
                left -= 1
                if left < 0:
                    os._exit(9)

        status = 1
        try:
            sys.addaudithook(count)
            work()
            status = 0
        finally:
            os._exit(status)
    _, wait_status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(wait_status)
    assert code in (0, 9)
    return code == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("place", ["folders", "objects on a disk"])
def test_a_process_that_dies_at_any_operation_leaves_no_half_version(
    tmp_path: Path, step: str, place: str
) -> None:
    for operations in range(500):
        root = tmp_path / f"{operations}"
        make: MakeStore = (
            (lambda root=root: VersionStore(root, PRESET))
            if place == "folders"
            else (lambda root=root: objects_on_disk(root / "machine", root / "disk"))
        )
        store = make()
        publish(store)
        store.promote(publish(store).version_id)
        before = ids(store)
        ended = in_a_process_that_dies(root, operations, lambda make=make: STEPS[step](make()))
        if ended:
            assert operations > 3
            return
        check_whole(make(), before, {SECOND, FIRST, store.base_version})
    pytest.fail("it never ended")
