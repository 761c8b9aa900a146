"""Versions in S3: a real client against a server on this machine that speaks its API."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from sspsam.version_pruning import plan_pruning, prune
from sspsam.versions import UnreachableStoreError, VersionCard, VersionStore
from tests.s3_server import s3_server

pytestmark = pytest.mark.integration

PRESET = "ssp-sam-test"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def url(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """An empty bucket's folder; the client finds server and key as people configure them."""
    import fsspec

    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"models-{abs(hash(request.node.name))}"
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(bucket)
    return f"s3://{bucket}/sspsam"


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


def test_a_bucket_that_is_not_there_is_named(url: str, tmp_path: Path) -> None:
    store = VersionStore(tmp_path, PRESET, url="s3://nobodys-bucket/sspsam")
    with pytest.raises(UnreachableStoreError, match="s3://nobodys-bucket/sspsam"):
        publish(store)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
