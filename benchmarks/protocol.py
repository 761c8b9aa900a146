"""How quickly /health, /setup and /webhook answer while annotators keep the model busy.

Label Studio gives /health and a webhook event one second, /setup three, and makes people wait meanwhile. The
backend runs as `sspsam serve` runs it, with the weights that ship, on a Redis of its own; its pictures come
from a server in this process. Everything shares this machine's cores, so the figures are upper bounds.

    python benchmarks/protocol.py [--seconds 10] [--annotators 4]
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import requests
from PIL import Image

from backend.labelstudio.config import RECOMMENDED_CONFIG
from sspsam.masks import mask_to_brush_rle
from worker.redis_program import redis_program

LIMIT_MS = 50
PERCENTILES = (50, 99)
EVENT_EVERY_S = 0.02
"""Between two requests of one kind: far more than Label Studio sends."""
PICTURE_PX = 640
START_S = 120.0


class Pictures(BaseHTTPRequestHandler):
    """Gives everybody the same picture."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.end_headers()
        self.wfile.write(PICTURE)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def _picture() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (PICTURE_PX, PICTURE_PX, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


PICTURE = _picture()


def large_event() -> bytes:
    """A saved annotation with two ragged masks, as Label Studio sends it: some megabytes."""
    mask = np.random.default_rng(0).random((700, 900)) > 0.5
    region = {
        "id": "a",
        "from_name": "mask",
        "type": "brushlabels",
        "value": {"rle": mask_to_brush_rle(mask)},
    }
    annotation = {"id": 3, "task": 4, "project": 5, "result": [region, region]}
    event = {
        "action": "ANNOTATION_UPDATED",
        "annotation": annotation,
        "project": {"id": 5},
        "task": {"id": 4},
    }
    return json.dumps(event).encode()


@contextmanager
def backend() -> Iterator[str]:
    """A running backend; yields its address when its model is loaded."""
    pictures = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=pictures.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(prefix="sspsam-") as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        own = {
            "OPEN_ACCESS": "true",  # nobody but this process calls
            "LABEL_STUDIO_URL": f"http://127.0.0.1:{pictures.server_port}",
            "LABEL_STUDIO_API_KEY": "key",
            "MODEL_DIR": f"{folder}/models",
            "REDIS_URL": f"unix://{folder}/redis.sock",
            "LOG_LEVEL": "WARNING",
            "HOST": "127.0.0.1",
            "PORT": str(port),
        }
        store = [str(redis_program()), "--port", "0", "--unixsocket", f"{folder}/redis.sock", "--save", ""]
        serve = [sys.executable, "-c", "from sspsam.cli import main; main()", "serve"]
        redis = subprocess.Popen(store, cwd=folder, stdout=subprocess.DEVNULL)
        process = subprocess.Popen(serve, cwd=Path(__file__).parents[1], env={**os.environ, **own})
        try:
            _wait_for_model(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            for started in (process, redis):
                started.terminate()
                started.wait()
            pictures.shutdown()


def _wait_for_model(url: str, process: subprocess.Popen[bytes]) -> None:
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s and process.poll() is None:
        try:
            if requests.get(f"{url}/health", timeout=5).json()["model_state"] == "ready":
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.2)
    raise SystemExit("the backend did not start")


def annotate(url: str, annotator: int, ended: threading.Event, answered: list[float]) -> None:
    """Asks for one phrase after the other, on a few pictures, as fast as answers come."""
    with requests.Session() as session:
        for number in itertools.count():
            if ended.is_set():
                return
            prompt = {"id": "p", "from_name": "prompt", "to_name": "image", "type": "textarea"}
            asked = {**prompt, "value": {"text": [f"the {number}. thing of {annotator}"]}}
            task = {"id": annotator, "data": {"image": f"/data/upload/{annotator}.png"}}
            body = {
                "tasks": [task],
                "project": "5.1",
                "label_config": RECOMMENDED_CONFIG,
                "params": {"context": {"result": [asked]}},
            }
            since_s = time.perf_counter()
            session.post(f"{url}/predict", json=body, timeout=100).raise_for_status()
            answered.append(time.perf_counter() - since_s)


def probes(url: str) -> dict[str, Callable[[requests.Session], requests.Response]]:
    """What is measured: name -> one request."""
    small, large = b'{"action": "PROJECT_UPDATED", "project": {"id": 5}}', large_event()
    setup = {"project": "5.1", "schema": RECOMMENDED_CONFIG, "hostname": url, "access_token": ""}
    return {
        "/health": lambda session: session.get(f"{url}/health"),
        "/setup": lambda session: session.post(f"{url}/setup", json=setup),
        "/webhook, nothing to do": lambda session: session.post(f"{url}/webhook", data=small),
        f"/webhook, {len(large) / 1e6:.1f} MB": lambda session: session.post(f"{url}/webhook", data=large),
    }


def measure(url: str, seconds: float) -> dict[str, np.ndarray]:
    """Times, ms, of each probe, in turn."""
    sends = probes(url)
    took: dict[str, list[float]] = {name: [] for name in sends}
    until_s = time.monotonic() + seconds
    with requests.Session() as session:
        while time.monotonic() < until_s:
            for name, send in sends.items():
                since_s = time.perf_counter()
                send(session).raise_for_status()
                took[name].append(1000 * (time.perf_counter() - since_s))
                time.sleep(EVENT_EVERY_S)
    return {name: np.array(times) for name, times in took.items()}


def report(title: str, times: dict[str, np.ndarray]) -> None:
    print(title)
    for name, each in times.items():
        p50, p99 = np.percentile(each, PERCENTILES)
        within = 100 * (each <= LIMIT_MS).mean()
        print(f"  {name:26} p50 {p50:6.1f} ms   p99 {p99:6.1f} ms   {within:5.1f} % within {LIMIT_MS} ms")


def main() -> None:
    """Measures the idle backend, then the busy one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="for each of the two measurements")
    parser.add_argument("--annotators", type=int, default=4, help="who ask without a pause")
    options = parser.parse_args()
    with backend() as url:
        report("idle", measure(url, options.seconds))
        ended, answered = threading.Event(), list[float]()
        busy = [
            threading.Thread(target=annotate, args=(url, number, ended, answered))
            for number in range(options.annotators)
        ]
        for thread in busy:
            thread.start()
        times = measure(url, options.seconds)
        ended.set()
        for thread in busy:
            thread.join()
        title = f"{options.annotators} annotators, {len(answered) / options.seconds:.1f} phrases a second"
        report(title, times)


if __name__ == "__main__":
    main()
