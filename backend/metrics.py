"""Prometheus metrics of one app; served at /metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from backend.corrections import Tally, merged

LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 100)
OUTCOMES = ("accepted", "edited", "deleted", "added", "missed")
"""Of a mask, as counted by `backend.corrections`."""
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
NO_LINE = "default"
"""Label of the line of requests without a project."""
OTHERS = "(others)"
MOST_SERIES = 500
"""Lines, and pairs of a version and a label, with series of their own: those with the most masks. Annotators
choose labels, and callers name projects; the rest is counted as OTHERS.
"""


class Metrics:
    """One registry per app, so that two apps in one process do not share counts."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "sspsam_requests", "Requests answered", ["endpoint", "status"], registry=self.registry
        )
        self.latency = Histogram(
            "sspsam_request_seconds",
            "Response time",
            ["endpoint"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.phrases = Counter(
            "sspsam_phrases",
            "Requested phrases: mask, no_match or failed",
            ["outcome"],
            registry=self.registry,
        )
        self.clicks = Counter(
            "sspsam_clicks",
            "Processed clicks and boxes: corrected, new, nothing or failed",
            ["outcome"],
            registry=self.registry,
        )
        self.events = Counter("sspsam_events", "Webhook events", ["action"], registry=self.registry)
        self.swaps = Counter("sspsam_version_swaps", "Swaps of the serving weights", registry=self.registry)
        self.model = Gauge(
            "sspsam_model_info",
            "1 for the version that serves requests without a project",
            ["version", "state"],
            registry=self.registry,
        )
        self.lines = Gauge(
            "sspsam_line_info",
            "1 for the version that serves a line in use",
            ["line", "version"],
            registry=self.registry,
        )
        self.refused_versions = Gauge(
            "sspsam_version_refused",
            "1 for a promoted version that could not be loaded, by the line that it was promoted for",
            ["line", "version"],
            registry=self.registry,
        )
        self.loaded_versions = Gauge(
            "sspsam_version_cache_versions", "Fine-tuned versions in memory", registry=self.registry
        )
        self.loaded_bytes = Gauge(
            "sspsam_version_cache_bytes", "Memory used by fine-tuned versions", registry=self.registry
        )
        self.loads = Counter(
            "sspsam_version_loads", "Fine-tuned versions loaded into memory", registry=self.registry
        )
        self.refused = Counter(
            "sspsam_refused",
            "Requests without an answer: busy, or abandoned by the caller (late)",
            ["reason"],
            registry=self.registry,
        )
        self.batch = Histogram(
            "sspsam_batch_size",
            "Phrases per forward pass",
            buckets=BATCH_BUCKETS,
            registry=self.registry,
        )
        self.waited = Histogram(
            "sspsam_wait_seconds",
            "Waiting time of the first item of a batch",
            ["lane"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.waiting = Gauge("sspsam_waiting", "Waiting images and phrases", ["lane"], registry=self.registry)
        self.embeddings = Counter(
            "sspsam_embeddings",
            "Image embeddings needed by requests, by source: memory, disk, encoder",
            ["source"],
            registry=self.registry,
        )
        self.prefetched = Counter(
            "sspsam_prefetched",
            "Images embedded when a task was opened, before any request",
            registry=self.registry,
        )
        self.cached_images = Gauge(
            "sspsam_embedding_cache_images", "Images with an embedding in memory", registry=self.registry
        )
        self.cached_bytes = Gauge(
            "sspsam_embedding_cache_bytes", "Memory used by embeddings", registry=self.registry
        )

        self.corrections = Gauge(
            "sspsam_corrections",
            "Masks in saved annotations: accepted, edited, deleted, added, missed; may decrease",
            ["version", "label", "outcome"],
            registry=self.registry,
        )
        self.line_corrections = Gauge(
            "sspsam_line_corrections",
            "The same, by line of versions",
            ["line", "outcome"],
            registry=self.registry,
        )
        self.correction_iou = Gauge(
            "sspsam_corrections_mean_iou",
            "Mean IoU of proposed and submitted masks",
            ["version", "label"],
            registry=self.registry,
        )

        self.skipped = Gauge(
            "sspsam_skipped_items",
            "Projects, tasks and annotations left out by background work because of an error",
            ["work"],
            registry=self.registry,
        )

    def phrase_count(self) -> int:
        """Number of phrases requested so far."""
        samples = (sample for family in self.phrases.collect() for sample in family.samples)
        return int(sum(sample.value for sample in samples if sample.name == "sspsam_phrases_total"))

    def set_skipped(self, counts: Mapping[str, int]) -> None:
        """Exports the worker's counts of items that were left out."""
        for work, count in counts.items():
            self.skipped.labels(work).set(count)

    def set_corrections(self, by_line: Iterable[tuple[str, Tally]]) -> None:
        """Exports the worker's counts of corrections, each with the line of its project."""
        self.corrections.clear()
        self.line_corrections.clear()
        self.correction_iou.clear()
        counted = list(by_line)
        of_line = _first(merged(replace(tally, version=line, label="") for line, tally in counted), "version")
        for tally in of_line:
            for outcome in OUTCOMES:
                self.line_corrections.labels(tally.version, outcome).set(getattr(tally, outcome))
        for tally in _first(merged(tally for _, tally in counted), "label"):
            for outcome in OUTCOMES:
                self.corrections.labels(tally.version, tally.label, outcome).set(getattr(tally, outcome))
            if tally.mean_iou is not None:
                self.correction_iou.labels(tally.version, tally.label).set(tally.mean_iou)

    def set_lines(
        self,
        serving: Mapping[str, str],
        refused: Iterable[tuple[str, str]],
        loaded_versions: int,
        loaded_bytes: int,
    ) -> None:
        """Exports the lines in use.

        Args:
            serving: Line -> version.
            refused: (line, version) of promoted versions that could not be loaded.
            loaded_versions: Number of versions in memory.
            loaded_bytes: Memory of their tensors.
        """
        self.lines.clear()
        self.refused_versions.clear()
        for line, version in serving.items():
            self.lines.labels(line or NO_LINE, version).set(1)
        for line, version in refused:
            self.refused_versions.labels(line or NO_LINE, version).set(1)
        self.loaded_versions.set(loaded_versions)
        self.loaded_bytes.set(loaded_bytes)

    def render(
        self,
        version: str,
        state: str,
        cached_images: int,
        cached_bytes: int,
        waiting: Mapping[str, int] = MappingProxyType({}),
    ) -> bytes:
        """Writes all metrics in Prometheus' text format."""
        for lane, count in waiting.items():
            self.waiting.labels(lane).set(count)
        self.model.clear()
        self.model.labels(version, state).set(1)
        self.cached_images.set(cached_images)
        self.cached_bytes.set(cached_bytes)
        return generate_latest(self.registry)


def _first(tallies: Sequence[Tally], name: Literal["version", "label"]) -> list[Tally]:
    """The MOST_SERIES with the most masks; the others together, with OTHERS in the named field."""
    ordered = sorted(tallies, key=lambda tally: -tally.masks)
    rest = merged(_with(tally, name, OTHERS) for tally in ordered[MOST_SERIES:])
    return merged([*ordered[:MOST_SERIES], *rest])


def _with(tally: Tally, name: Literal["version", "label"], value: str) -> Tally:
    return replace(tally, version=value) if name == "version" else replace(tally, label=value)
