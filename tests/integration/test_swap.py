"""Weight swaps under load: no failed request, no answer with mixed versions, no effect of bad versions."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event

import numpy as np
import psutil
import pytest
import requests
import torch
from redis import Redis

from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.shared_redis import VERSIONS_CHANNEL
from sspsam import Predictor
from sspsam.images.masks import BoolMask
from sspsam.version_store.store import CURRENT, WEIGHTS, VersionCard, VersionStore
from tests.backend.colours import picture
from tests.integration.conftest import LOOPBACK, free_port
from tests.integration.parts import Backend, FixedLabelStudio, asked
from tests.integration.test_faults import environment, label_studio_server
from tests.waiting import wait_until
from tests.worker.decisive import PRESET, decisive_state

__all__ = ["environment", "label_studio_server"]

CLIENTS = 16
SWAPS = 6
PHRASES = tuple(f"the thing number {number}" for number in range(6))
CONFIG = LabelingConfig.parse(RECOMMENDED_CONFIG)
ALIKE = 0.98
"""IoU with what a version says alone: phrases that share a pass may differ in a pixel."""
SWAP_WITHIN_S = 120.0
MOST_GROWTH_BYTES = 32 * 2**20

State = Mapping[str, torch.Tensor]


def inverted(state: State) -> State:
    """Weights whose masks are the complement of these weights' masks."""
    last = "sam.mask_decoder.output_hypernetworks_mlps.0.layers.2."
    return {name: -tensor if name.startswith(last) else tensor for name, tensor in state.items()}


@dataclass
class Versions:
    """Two versions in a store, and what each says about the picture."""

    store: VersionStore
    masks: dict[str, dict[str, BoolMask]] = field(default_factory=dict)
    """Version -> phrase -> mask."""

    def add(self, predictor: Predictor, state: State) -> str:
        version = self.store.publish(state, VersionCard(), {}).version_id
        predictor.load_trainable(state)
        answers = predictor.predict(predictor.embed(picture()), PHRASES)
        self.masks[version] = {answer.phrase: answer.mask for answer in answers}
        return version

    def wrong(self, answer: requests.Response, phrase: str) -> str:
        """What is wrong with an answer; empty if it is its version's own."""
        if answer.status_code != 200:
            return f"status {answer.status_code}"
        [prediction] = answer.json()["results"]
        regions = read_annotation(prediction, CONFIG).regions
        if not regions:
            return f"no mask for {phrase}: {prediction}"
        own = self.masks[prediction["model_version"]][phrase]
        mask = np.any([region.mask for region in regions], axis=0)  # of all objects of the phrase
        iou = (mask & own).sum() / (mask | own).sum()
        return "" if iou > ALIKE else f"{prediction['model_version']} would not say this, IoU {iou:.2f}"


@pytest.fixture
def versions(environment: dict[str, str]) -> Versions:
    predictor = Predictor.from_preset(PRESET, "cpu")
    versions = Versions(VersionStore(Path(environment["MODEL_DIR"]), PRESET))
    first = versions.add(predictor, decisive_state())
    versions.add(predictor, inverted(decisive_state()))
    versions.store.promote(first)
    return versions


@pytest.fixture
def backend(environment: dict[str, str], versions: Versions) -> Iterator[Backend]:
    """A backend with whose first answers the first version is known to serve."""
    port = free_port()
    command = [str(Path(sysconfig.get_path("scripts")) / "sspsam"), "serve"]
    told = os.environ | environment | {"PORT": str(port), "QUEUE_LIMIT": "128", "MIN_SPECK": "0"}
    told |= {"BASIC_AUTH_USER": "", "BASIC_AUTH_PASS": "", "OPEN_ACCESS": "true"}
    with subprocess.Popen(command, env=told, stderr=subprocess.DEVNULL) as process:
        try:
            server = Backend(process, f"http://{LOOPBACK}:{port}")
            wait_until(server.ready, patience_s=SWAP_WITHIN_S)
            yield server
        finally:
            process.kill()


def ask(server: Backend, image: str, phrase: str) -> requests.Response:
    return requests.post(f"{server.url}/predict", json=asked(image, phrase), timeout=120)


@pytest.fixture
def image(label_studio_server: FixedLabelStudio) -> str:
    [task] = label_studio_server.tasks.values()
    return str(task["data"]["image"])


def test_a_swap_under_load_fails_no_request_and_mixes_no_versions(
    backend: Backend, versions: Versions, image: str, environment: dict[str, str]
) -> None:
    """Promotions and rollbacks in turn; every answer is wholly that of the version that it names."""
    served: Counter[str] = Counter()
    wrong: list[str] = []
    stop = Event()

    def annotate(number: int) -> None:
        turn = number
        while not stop.is_set():
            phrase = PHRASES[turn % len(PHRASES)]
            answer = ask(backend, image, phrase)
            if said := versions.wrong(answer, phrase):
                wrong.append(said)
            else:
                served[answer.json()["results"][0]["model_version"]] += 1
            turn += 1

    def has_served(version: str, answers: int) -> bool:
        return served[version] >= answers or bool(wrong)

    clients = [threading.Thread(target=annotate, args=(number,)) for number in range(CLIENTS)]
    process, sizes = psutil.Process(backend.process.pid), []
    for client in clients:
        client.start()
    try:
        first, second = versions.masks
        with Redis.from_url(environment["REDIS_URL"]) as redis:
            for turn in range(SWAPS):
                if turn % 2:
                    assert versions.store.rollback() == first
                else:
                    versions.store.promote(second)
                serving = versions.store.current()
                redis.publish(VERSIONS_CHANNEL, serving)
                wait_until(partial(has_served, serving, served[serving] + CLIENTS), patience_s=SWAP_WITHIN_S)
                family = [process, *process.children(recursive=True)]
                sizes.append(sum(one.memory_info().rss for one in family))
    finally:
        stop.set()
        for client in clients:
            client.join()

    assert not wrong
    assert set(served) == {first, second}
    assert sizes[-1] - sizes[1] < MOST_GROWTH_BYTES, f"memory does not return: {sizes}"


def test_a_version_that_cannot_be_loaded_is_refused_and_the_message_may_be_lost(
    backend: Backend, versions: Versions, image: str
) -> None:
    """Nothing is published in Redis: the backend finds both promotions by polling."""
    first, second = versions.masks
    damaged = versions.store.publish(decisive_state(), VersionCard(), {}).version_id
    weights = versions.store.path(damaged) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    current = versions.store.folder / CURRENT
    before = current.read_text()
    current.write_text(json.dumps({**json.loads(before), "version_id": damaged}))

    def page() -> str:
        return requests.get(backend.url, headers={"Accept": "text/html"}, timeout=60).text

    wait_until(lambda: "differs from what was published" in page(), patience_s=SWAP_WITHIN_S)
    answer = ask(backend, image, PHRASES[0])
    assert versions.wrong(answer, PHRASES[0]) == ""
    assert answer.json()["results"][0]["model_version"] == first, "the old one serves on"

    current.write_text(before)
    versions.store.promote(second)
    wait_until(lambda: backend.health()["model_version"] == second, patience_s=SWAP_WITHIN_S)
    answer = ask(backend, image, PHRASES[0])
    assert versions.wrong(answer, PHRASES[0]) == ""
    assert answer.json()["results"][0]["model_version"] == second


def test_the_two_versions_can_be_told_apart(versions: Versions) -> None:
    """Without this, the other tests could not fail."""
    first, second = versions.masks.values()
    for phrase in PHRASES:
        assert first[phrase].any()
        assert second[phrase].any()
        overlap = np.count_nonzero(first[phrase] & second[phrase])
        assert overlap < 0.1 * np.count_nonzero(first[phrase] | second[phrase])
