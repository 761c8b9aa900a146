"""The steps of `benchmarks/gpu_check.py`: each measures one subject on a device and returns a table."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import requests
import torch
from torch import Tensor, nn

from benchmarks.common.serving import Scenes, ask, metric, serving
from finetune.data.stickers.dataset import make_scene
from finetune.data.stickers.demo import NOUNS
from finetune.training.config import TrainConfig
from finetune.training.launch import train_together
from finetune.training.train import train
from sspsam import SSPSAM, Predictor, build_image_encoder, build_model, load_checkpoint
from sspsam.presets import IMAGE_ENCODERS
from tests.sspsam.golden import golden_checkpoint, golden_inputs, golden_record

TOLERANCE = 2e-4
"""Of the golden files, as in the tests."""
PAPER_MS = 26.68
"""Time of a sample that the paper states, with SAM's image embedding cached."""
MIB = 2**20
PHRASES = ("the dog", "the car on the left", "all trees", "the biggest animal")


@dataclass(frozen=True)
class Sizes:
    """Sizes of all steps."""

    device: str
    golden: Sequence[str]
    """Variants compared with their golden files; without one, the device is compared with the CPU."""
    preset: str
    """Of the phrase path."""
    served: str
    """Preset of the engine, the soak and the fine-tune: with packaged weights."""
    encoders: Sequence[str]
    batches: Sequence[int]
    repeats: int
    clients: Sequence[int]
    clients_s: float
    soak_s: float
    train_steps: int


GPU = Sizes(
    device="cuda", golden=("ssp-sam-224", "ssp-sam-336"), preset="ssp-sam-224", served="ssp-sam-demo",
    encoders=("vit_b", "vit_h", "mobile"), batches=(1, 4, 8), repeats=10, clients=(1, 4, 16, 32),
    clients_s=8.0, soak_s=120.0, train_steps=20,
)  # fmt: skip
DRY = Sizes(
    device="cpu", golden=(), preset="ssp-sam-test", served="ssp-sam-test", encoders=("vit_test",),
    batches=(1, 2), repeats=1, clients=(1, 2), clients_s=0.1, soak_s=0.1, train_steps=1,
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Result of a step."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def golden_files(sizes: Sizes) -> Table:
    """Largest deviation from the golden files, with TF32 off and on."""
    rows = []
    for variant in sizes.golden or [sizes.preset]:
        model, inputs, expected = _golden(variant) if sizes.golden else _of_the_cpu(variant)
        model = model.to(sizes.device)
        for tf32 in (False, True):
            with _tf32(tf32), torch.inference_mode():
                found = _summary(model, [tensor.to(sizes.device) for tensor in inputs], expected)
            worst = max(
                (found[name] - value).abs().max().item() for name, value in expected.items() if name in found
            )
            verdict = "met" if worst <= TOLERANCE else "missed"
            rows.append([variant, "on" if tf32 else "off", f"{worst:.1e}", verdict])
    return Table(["variant", "TF32", "largest deviation", f"target: {TOLERANCE:.0e}"], rows)


def autocast(sizes: Sizes) -> Table:
    """IoU of masks in half precision with those in float32."""
    predictor = Predictor.from_preset(sizes.served, sizes.device)
    images = [_scene(seed) for seed in range(sizes.repeats)]
    with _tf32(False):
        exact = [_masks(predictor, image) for image in images]
    rows = []
    for dtype in (torch.float16, torch.bfloat16):
        fresh = Predictor.from_preset(sizes.served, sizes.device)  # without cached features
        with torch.autocast(torch.device(sizes.device).type, dtype):
            half = [_masks(fresh, image) for image in images]
        ious = [
            _iou(*pair)
            for exact_of, half_of in zip(exact, half, strict=True)
            for pair in zip(exact_of, half_of, strict=True)
        ]
        values = (np.mean(ious), np.percentile(ious, 5), np.min(ious))
        rows.append(
            [str(dtype).removeprefix("torch."), str(len(ious)), *(f"{value:.3f}" for value in values)]
        )
    return Table(["autocast", "masks", "mean IoU", "5th percentile", "least"], rows)


def engine(sizes: Sizes) -> Table:
    """The served engine under 1 to 32 clients."""
    import requests

    rows, most = [], max(sizes.clients)
    with (
        serving(most, DEVICE=sizes.device, PRESET=sizes.served, QUEUE_LIMIT=str(2 * most)) as (url, shown),
        requests.Session() as session,
    ):
        for task, phrases in shown.phrases.items():  # embeds the images beforehand
            ask(session, url, shown.server.tasks[task], phrases[0])
        for clients in sizes.clients:
            before = [metric(url, f"sspsam_batch_size_{what}") for what in ("sum", "count")]
            took_s, errors = _ask_together(url, shown, clients, sizes.clients_s)
            phrases, passes = (
                metric(url, f"sspsam_batch_size_{what}") - value
                for what, value in zip(("sum", "count"), before, strict=True)
            )
            quantiles = [f"{1000 * np.percentile(took_s, percent):.0f}" for percent in (50, 95)]
            rate, batch = len(took_s) / sizes.clients_s, phrases / max(passes, 1)
            rows.append([str(clients), f"{rate:.1f}", *quantiles, f"{batch:.1f}", str(len(errors))])
    return Table(["clients", "phrases/s", "p50 ms", "p95 ms", "phrases/pass", "errors"], rows)


def image_encoders(sizes: Sizes) -> Table:
    """Image encoders in float32, bfloat16 and compiled, for batches of images."""
    rows = []
    for name in sizes.encoders:
        encoder = build_image_encoder(name).eval().to(sizes.device)
        side = IMAGE_ENCODERS[name].image_size
        for mode, forward in _modes(encoder, sizes).items():
            for batch in sizes.batches:
                images = torch.randn(batch, 3, side, side, device=sizes.device)
                _reset_peak(sizes.device)
                forward(images)  # compiles, and chooses algorithms
                took_s = _median_s(partial(forward, images), sizes)
                rows.append([name, mode, str(batch), f"{1000 * took_s / batch:.1f}", _peak_mib(sizes.device)])
        del encoder
        _empty_cache(sizes.device)
    return Table(["encoder", "mode", "images", "ms an image", "peak MiB"], rows)


def phrase_path(sizes: Sizes) -> Table:
    """One sample with SAM's embedding cached: eager, compiled by CUDA graph, and the paper's figure."""
    model = build_model(sizes.preset).eval().to(sizes.device)
    inputs = [tensor.to(sizes.device) for tensor in _random_inputs(model, batch=1)]
    with torch.inference_mode():
        model(*inputs)
        eager_s = _median_s(lambda: model(*inputs), sizes)
        replay = _graph(model, inputs, sizes.device)
        graph_s = _median_s(replay, sizes)
    rows = [
        ["the paper, its own GPU", f"{PAPER_MS:.2f}"],
        [f"{sizes.preset}, eager", f"{1000 * eager_s:.2f}"],
        [f"{sizes.preset}, CUDA graph", f"{1000 * graph_s:.2f}"],
    ]
    return Table(["one sample, CLIP's image and phrase included", "ms"], rows)


def memory(sizes: Sizes) -> Table:
    """Memory of the device for weights, an image, and 16 phrases."""
    rows = []
    for name in sizes.encoders:
        _empty_cache(sizes.device)
        _reset_peak(sizes.device)
        encoder = build_image_encoder(name).eval().to(sizes.device)
        model = build_model(sizes.preset).eval().to(sizes.device)
        weights = _peak_mib(sizes.device)
        side = IMAGE_ENCODERS[name].image_size
        with torch.inference_mode():
            encoder(torch.randn(1, 3, side, side, device=sizes.device))
            after_image = _peak_mib(sizes.device)
            _reset_peak(sizes.device)
            model(*(tensor.to(sizes.device) for tensor in _random_inputs(model, batch=16)))
        rows.append([name, weights, after_image, _peak_mib(sizes.device)])
        del encoder, model
    return Table(["encoder", "weights MiB", "an image, peak MiB", "16 phrases, peak MiB"], rows)


def soak(sizes: Sizes) -> Table:
    """Images and phrases for some minutes: answers, errors, growth of memory."""
    predictor = Predictor.from_preset(sizes.served, sizes.device)
    masks, seed, before, until_s = 0, 0, None, time.monotonic() + sizes.soak_s
    while seed == 0 or time.monotonic() < until_s:
        masks += len(_masks(predictor, _scene(seed % 50)))
        seed += 1
        if before is None and time.monotonic() > until_s - 0.9 * sizes.soak_s:
            before = _reserved_mib(sizes.device)
    growth = _reserved_mib(sizes.device) - (before or 0.0)
    return Table(["images", "masks", "growth after a tenth, MiB"], [[str(seed), str(masks), f"{growth:.0f}"]])


def fine_tune(sizes: Sizes) -> Table:
    """A fine-tune of a few steps, on one GPU and on two if there are two."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        config = TrainConfig(
            preset=sizes.served, output_dir=Path(folder) / "one", data="stickers/train",
            steps=sizes.train_steps, batch_size=8, window=16, target_size=64, device=sizes.device,
        )  # fmt: skip
        rows.append(["1", *_trained(lambda: train(config).metrics, sizes)])
        if torch.cuda.device_count() > 1:
            together = replace(config, output_dir=Path(folder) / "two")
            rows.append(["2", *_trained(lambda: train_together(together, 2).metrics, sizes)])
    return Table(["GPUs", "steps", "s", "loss", "peak MiB"], rows)


STEPS: Mapping[str, Callable[[Sizes], Table]] = {
    "Golden files": golden_files,
    "Half precision": autocast,
    "Phrase path": phrase_path,
    "Image encoders": image_encoders,
    "Memory": memory,
    "Engine": engine,
    "Fine-tune": fine_tune,
    "Soak": soak,
}


def _ask_together(url: str, shown: Scenes, clients: int, seconds: float) -> tuple[list[float], list[str]]:
    """Seconds of each answer, and errors: each client sends a phrase after the other, at least one."""
    until_s, took_s, errors = time.monotonic() + seconds, [], []

    def annotate(client: int) -> None:
        task, phrases = shown.server.tasks[client + 1], shown.phrases[client + 1]
        with requests.Session() as session:
            for phrase in itertools.cycle(phrases):
                since_s = time.perf_counter()
                try:
                    ask(session, url, task, phrase)
                except (RuntimeError, requests.RequestException) as error:
                    errors.append(str(error))
                took_s.append(time.perf_counter() - since_s)
                if time.monotonic() > until_s:
                    return

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(annotate, range(clients)))
    return took_s, errors


def _golden(variant: str) -> tuple[SSPSAM, Sequence[Tensor], dict[str, Tensor]]:
    record = golden_record(variant)
    model = build_model(variant).eval()
    load_checkpoint(model, golden_checkpoint(variant))
    points = torch.tensor(record["low_res_points_yx"])
    names = {"boxes": "boxes_cxcywh", "logits": "low_res_logits", "iou": "iou_prediction"}
    expected = {name: torch.tensor(record[key]) for name, key in names.items()}
    return model, golden_inputs(record), {**expected, "points": points}


def _of_the_cpu(preset: str) -> tuple[SSPSAM, Sequence[Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    model = build_model(preset).eval()
    inputs = _random_inputs(model, batch=2)
    points = {"points": torch.tensor([[0, 0], [1, 2]])}
    with torch.inference_mode():
        return model, inputs, {**_summary(model, inputs, points), **points}


def _summary(model: SSPSAM, inputs: Sequence[Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs that a golden file records."""
    output, points = model(*inputs), expected["points"]
    logits = output.mask_logits[:, 0].cpu()
    return {
        "boxes": output.boxes.cpu(),
        "logits": logits[:, points[:, 0], points[:, 1]],
        "iou": output.iou_predictions.cpu(),
    }


def _random_inputs(model: SSPSAM, batch: int) -> list[Tensor]:
    side = model.preset.clip.image_size
    encoder = IMAGE_ENCODERS[model.preset.image_encoder]
    grid = encoder.embedding_size
    tokens = torch.zeros(batch, 77, dtype=torch.long)
    tokens[:, 0], tokens[:, 1:5], tokens[:, 5] = 49406, 1929, 49407
    return [torch.randn(batch, 3, side, side), torch.randn(batch, encoder.embedding_dim, grid, grid), tokens]


def _modes(encoder: nn.Module, sizes: Sizes) -> dict[str, Callable[[Tensor], Tensor]]:
    """Ways to run an encoder."""
    kind = torch.device(sizes.device).type
    compiled = torch.compile(encoder, backend="inductor" if kind == "cuda" else "eager")

    def exactly(images: Tensor) -> Tensor:
        with torch.inference_mode():
            result: Tensor = encoder(images)
            return result

    def in_half(images: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16):
            result: Tensor = encoder(images)
            return result

    def compiled_in_half(images: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16):
            result: Tensor = compiled(images)
            return result

    return {"float32": exactly, "bfloat16": in_half, "bfloat16, torch.compile": compiled_in_half}


def _graph(model: SSPSAM, inputs: Sequence[Tensor], device: str) -> Callable[[], object]:
    """The forward pass as a CUDA graph of fixed shapes; on a CPU the pass itself."""
    if not device.startswith("cuda"):
        return lambda: model(*inputs)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            model(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(*inputs)
    return graph.replay


def _trained(run: Callable[[], Mapping[str, float]], sizes: Sizes) -> list[str]:
    _reset_peak(sizes.device)
    since_s = time.perf_counter()
    loss = run()["total"]
    took_s = time.perf_counter() - since_s
    return [str(sizes.train_steps), f"{took_s:.1f}", f"{loss:.3f}", _peak_mib(sizes.device)]


def _scene(seed: int) -> np.ndarray:
    return make_scene(9_000_000 + seed, "val", NOUNS).image


def _masks(predictor: Predictor, image: np.ndarray) -> list[np.ndarray]:
    embedding = predictor.embed(image)
    return [referent.mask for referent in predictor.predict(embedding, list(PHRASES))]


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    union = np.count_nonzero(one | other)
    return float(np.count_nonzero(one & other) / union) if union else 1.0


def _median_s(run: Callable[[], object], sizes: Sizes) -> float:
    seconds = []
    for _ in range(sizes.repeats):
        _wait(sizes.device)
        since_s = time.perf_counter()
        run()
        _wait(sizes.device)
        seconds.append(time.perf_counter() - since_s)
    return statistics.median(seconds)


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _empty_cache(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def _reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()


def _peak_mib(device: str) -> str:
    return f"{torch.cuda.max_memory_allocated() / MIB:.0f}" if device.startswith("cuda") else "–"


def _reserved_mib(device: str) -> float:
    return torch.cuda.memory_reserved() / MIB if device.startswith("cuda") else 0.0
