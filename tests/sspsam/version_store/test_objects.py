"""Versions in S3 and Google Cloud Storage: real clients against local servers with their APIs."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import fsspec
import pytest
import torch

from sspsam.version_store.pruning import plan_pruning, prune
from sspsam.version_store.store import UnreachableStoreError, VersionCard, VersionStore
from tests.gs_server import gs_server
from tests.s3_server import s3_server

pytestmark = pytest.mark.integration

PRESET = "ssp-sam-test"


@pytest.fixture(scope="module", params=["s3", "gs"])
def scheme(request: pytest.FixtureRequest) -> str:
    """Of the store's URL."""
    return str(request.param)


@pytest.fixture(scope="module")
def environment(scheme: str) -> Iterator[Mapping[str, str]]:
    """How people tell a client where its server is, and by what key."""
    if scheme == "s3":
        with s3_server() as endpoint:
            yield {
                "AWS_ENDPOINT_URL": endpoint,
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        return
    with gs_server() as endpoint:
        yield {"STORAGE_EMULATOR_HOST": endpoint}


@pytest.fixture
def url(scheme: str, environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket's folder."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"models-{uuid.uuid4().hex}"
    fsspec.filesystem(scheme, skip_instance_cache=True).mkdir(bucket)
    return f"{scheme}://{bucket}/sspsam"


def publish(store: VersionStore, value: float = 1.0) -> VersionCard:
    return store.publish({"w": torch.full((3,), value)}, VersionCard(), {"report.md": f"# {value}\n"})


def test_from_one_machine_to_the_other(url: str, tmp_path: Path) -> None:
    here, there = (VersionStore(tmp_path / name, PRESET, url=url) for name in ("here", "there"))
    assert (there.list()[1:], there.current()) == ([], here.base_version)
    first, second = publish(here, 1.5), publish(there, 2.5)
    assert [card.version_id for card in here.list()[1:]] == [f"{PRESET}-0001", f"{PRESET}-0002"]
    here.promote(first.version_id)
    there.promote(second.version_id, "better")
    assert here.current() == second.version_id
    torch.testing.assert_close(here.load(second.version_id)["w"], torch.full((3,), 2.5))
    report = here.file(second.version_id, "report.md")
    assert report is not None
    assert report.read_text() == "# 2.5\n"
    assert here.rollback("worse") == first.version_id == there.current()
    assert there.get(second.version_id).reason == "worse"
    plan = plan_pruning(there, keep_latest=0)
    assert list(plan.removed) == [second.version_id]
    assert 0 < plan.bytes_freed < 10_000
    assert plan.leftovers == {}
    prune(there, plan)
    assert [card.version_id for card in here.list()[1:]] == [first.version_id]


def test_writers_at_once_get_ids_of_their_own_and_lose_no_step(url: str, tmp_path: Path) -> None:
    """The server refuses a second object of one name: that is what ids and steps rely on."""
    stores = [VersionStore(tmp_path / f"{number}", PRESET, url=url) for number in range(3)]

    def write(store: VersionStore) -> None:
        for _ in range(2):
            store.promote(publish(store).version_id)

    with ThreadPoolExecutor(len(stores)) as pool:
        list(pool.map(write, stores))
    ids = [f"{PRESET}-{number:04d}" for number in range(1, 7)]
    assert [card.version_id for card in stores[0].list()[1:]] == ids
    assert sorted(entry.version_id for entry in stores[0].history()) == ids


def test_of_writers_at_once_of_the_same_thing_one_publishes_it(url: str, tmp_path: Path) -> None:
    stores = [VersionStore(tmp_path / f"{number}", PRESET, url=url) for number in range(3)]
    all_have_looked = Barrier(len(stores), timeout=60)

    def write(store: VersionStore) -> VersionCard:
        looks = 0

        def find() -> VersionCard | None:
            nonlocal looks
            found = next((card for card in store.list() if card.data.get("run") == "this"), None)
            looks += 1
            if looks == 1:
                all_have_looked.wait()
            return found

        return store.publish({"w": torch.ones(3)}, VersionCard(data={"run": "this"}), {}, find)

    with ThreadPoolExecutor(len(stores)) as pool:
        cards = list(pool.map(write, stores))
    assert stores[0].list()[1:] == cards[:1]
    assert cards == cards[:1] * len(stores)
    assert len(fsspec.filesystem(url.partition(":")[0]).ls(f"{url}/{PRESET}/files")) == 1, (
        "the others' are gone"
    )


def test_what_a_dead_writer_left_is_found_when_it_is_old(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store tells how old it is, each in its own words."""
    store = VersionStore(tmp_path, PRESET, url=url)
    publish(store)
    with store.files.staging() as aside:
        (aside / "weights.safetensors").write_bytes(b"half")
        store.files.upload(aside)
    assert store.files.leftovers() == {}, "it may still be written"
    monkeypatch.setattr("sspsam.version_store.objects.LEFTOVER_AGE_S", -60)
    assert store.files.leftovers() == {aside.name[1:]: 4}
    prune(store, plan_pruning(store))
    assert store.files.leftovers() == {}
    assert [card.version_id for card in store.list()[1:]] == [f"{PRESET}-0001"]


def test_a_bucket_that_is_not_there_is_named(scheme: str, url: str, tmp_path: Path) -> None:
    store = VersionStore(tmp_path, PRESET, url=f"{scheme}://nobodys-bucket/sspsam")
    with pytest.raises(UnreachableStoreError, match=f"{scheme}://nobodys-bucket/sspsam"):
        publish(store)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
