"""A fake Label Studio over HTTP, and the worker's settings for it and the real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from redis import Redis

from backend.settings import Settings
from tests.worker import sample_jobs
from tests.worker.label_studio_server import KEY, LabelStudioServer
from worker.services import Services

ROOT = Path(__file__).parents[2]
PRESET = "ssp-sam-test"


@pytest.fixture
def label_studio() -> Iterator[LabelStudioServer]:
    with LabelStudioServer() as server:
        yield server


@pytest.fixture
def environment(
    tmp_path: Path, redis_url: str, redis_server: Redis, label_studio: LabelStudioServer
) -> dict[str, str]:
    """What the worker's processes are told; their Redis is empty."""
    return {
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": KEY,
        "REDIS_URL": redis_url,
        "MODEL_DIR": str(tmp_path / "models"),
        "PRESET": PRESET,
        "DEVICE": "cpu",
        "FINETUNE_AFTER": "4",
        "OMP_NUM_THREADS": "1",
        "TUNE_PROCESS": "0",  # a library chosen by its measured speed rounds otherwise
        "TRAINING_NICE": "0",  # tests run beside one another
        "JOB_MODULES": f"worker.jobs,{sample_jobs.__name__}",
        "PYTHONPATH": str(ROOT),  # of sample_jobs: the current folder is no place to import from
    }


@pytest.fixture
def services(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Services:
    """What jobs that run in this process work with; jobs make their own from the same environment."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Services(Settings())


@pytest.fixture
def mask() -> npt.NDArray[np.bool_]:
    """A ring and a separate dot: a hole, and two parts."""
    mask = np.zeros((48, 64), dtype=np.bool_)
    mask[10:30, 10:30] = True
    mask[15:25, 15:25] = False
    mask[40, 60] = True
    return mask


@pytest.fixture
def image() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
