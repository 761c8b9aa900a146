"""Engines on a store of versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from backend.metrics import Metrics
from backend.serving.embedding_store import EmbeddingCache
from backend.serving.engine import Engine
from backend.serving.shared_model import SharingOptions, SwappablePredictor
from sspsam.version_store.store import VersionStore
from tests.backend.colours import ColourPredictor
from tests.backend.serving.colour_versions import PRESET


@pytest.fixture
def versions(tmp_path: Path) -> VersionStore:
    return VersionStore(tmp_path, PRESET)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def make_engine(versions: VersionStore, metrics: Metrics) -> Iterator[Callable[..., Engine]]:
    """Makes engines that read the store when they are told to; stopped at the end of the test."""
    engines: list[Engine] = []

    def make(
        load: Callable[[], SwappablePredictor] = ColourPredictor,
        redis: Redis | None = None,
        store: VersionStore = versions,
        embeddings: EmbeddingCache[Any] | None = None,
        version_bytes: int = 2**30,
        poll_s: float = 3600,
        started: bool = True,
        **options: Any,
    ) -> Engine:
        engine = Engine(
            load,
            store,
            EmbeddingCache(10**8) if embeddings is None else embeddings,
            redis,
            metrics,
            SharingOptions(**options),
            poll_s,
            version_bytes,
        )
        engines.append(engine)
        if started:
            engine.start()
            assert engine.wait(60)
        return engine

    yield make
    for engine in engines:
        engine._poll_s = 0.1  # its thread ends within twice that
        engine.stop()
