"""The service's components, assembled from settings. Assembly opens nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from redis import Redis

from backend.assistant.assistant import Assistant
from backend.assistant.photograph_notice import PhotographNotice
from backend.errors import LabelingConfigError
from backend.events import DELETED, SAVED, SAVED_MANY, START_TRAINING, TASKS_DELETED, EventQueue
from backend.images.store import ImageStore
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.config import LabelingConfig
from backend.metrics import Metrics
from backend.queries import project_number
from backend.serving.embedding_store import EmbeddingCache
from backend.serving.engine import Engine
from backend.serving.shared_model import SharingOptions, SwappablePredictor
from backend.settings import Settings
from backend.shared_redis import connect_for_requests
from backend.state.audit import AuditLog
from backend.state.known_projects import KnownProject
from backend.state.redis_store import RedisStore
from backend.state.skipped_items import SkippedItems
from sspsam import VersionStore
from sspsam.presets import get_preset
from sspsam.version_store.store import VersionCard, VersionError

if TYPE_CHECKING:
    from sspsam import ImageEmbedding, Predictor

TITLE_MAX_CHARACTERS = 300
"""Kept of a project's title."""
_COUNTED_ACTIONS = SAVED | DELETED | {SAVED_MANY, START_TRAINING, TASKS_DELETED}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """Components used by the routes."""

    settings: Settings
    engine: Engine
    assistant: Assistant
    redis_store: RedisStore
    events: EventQueue
    versions: VersionStore
    metrics: Metrics
    skipped: SkippedItems
    audit: AuditLog
    redis: Redis

    def version_ids(self, project: str = "") -> list[str]:
        """A project's serving version first, then the others that may serve it, newest first."""
        serving = self.engine.version_of(project)
        try:
            usable = self.usable_versions(self.engine.line_of(project))
        except VersionError:  # the store may be unavailable: the serving version is known
            logger.exception("cannot read the version store")
            return [serving]
        others = [card.version_id for card in usable if card.version_id != serving]
        return [serving, *reversed(others)]

    def usable_versions(self, line: str | None = None) -> list[VersionCard]:
        """Cards of the versions that may serve a line, or any line, oldest first."""
        return [card for card in self.versions.list(line) if card.status != "rejected"]

    def register_project(self, project: KnownProject) -> None:
        """Stores a project as reported by Label Studio; logs what its form lacks if that has changed."""
        before = self.redis_store.projects.note(project)
        if before is not None and before.label_config == project.label_config:
            return
        try:
            config = LabelingConfig.parse(project.label_config)
            config.require()
        except LabelingConfigError as error:
            logger.warning("project %s: %s", project.project_id, error)
            return
        for tag in config.missing():
            level = logging.WARNING if tag.required else logging.INFO
            logger.log(level, "project %s: %s", project.project_id, tag.advice)

    def take_event(self, event: object) -> list[str]:
        """Queues the jobs of a webhook event, counts it, and records that the project's webhook works.

        Returns:
            IDs of the jobs; none for events that need no work.

        Raises:
            RequestError, QueueUnavailableError: as `EventQueue.handle`.
        """
        jobs = self.events.handle(event)
        assert isinstance(event, Mapping)
        self._note_event(event)
        return jobs

    def _note_event(self, event: Mapping[str, object]) -> None:
        """Unknown actions are counted together."""
        action = str(event.get("action"))
        self.metrics.events.labels(action if action in _COUNTED_ACTIONS else "other").inc()
        project = event.get("project")
        if isinstance(project, Mapping) and action != START_TRAINING:  # sent separately
            number = project_number(project.get("id"))
            self.redis_store.projects.set_last_webhook_time(number)
            self.redis_store.projects.note_title(
                number, str(project.get("title") or "")[:TITLE_MAX_CHARACTERS]
            )


def build_service(
    settings: Settings, redis: Redis | None = None, predictor: SwappablePredictor | None = None
) -> Service:
    """Assembles the service.

    Args:
        settings: Settings from the environment.
        redis: Replaces the one at REDIS_URL.
        predictor: Replaces the preset's.
    """
    redis = redis or connect_for_requests(settings.redis_url)
    metrics, redis_store = Metrics(), RedisStore(redis)
    versions = version_store(settings)
    load = partial(load_preset, settings) if predictor is None else lambda: predictor
    embeddings: EmbeddingCache[ImageEmbedding] = EmbeddingCache(
        settings.embedding_cache_bytes, settings.embeddings_dir, settings.embedding_store_bytes
    )
    sharing = SharingOptions(
        settings.max_batch, settings.batch_wait_ms / 1000, settings.queue_limit, settings.min_speck
    )
    engine = Engine(
        load, versions, embeddings, redis, metrics, sharing, version_bytes=settings.version_cache_bytes
    )
    client = label_studio_client(settings)
    images = image_store(settings, client)
    unfit = versions.base_version if knows_stickers_only(settings) else ""
    notice = PhotographNotice(images, redis_store, unfit)
    assistant = Assistant(engine, images, redis_store, metrics, settings.predict_timeout_s, client, notice)
    return Service(
        settings,
        engine,
        assistant,
        redis_store,
        EventQueue(redis),
        versions,
        metrics,
        SkippedItems(redis),
        AuditLog(settings.model_dir / "audit"),
        redis,
    )


def knows_stickers_only(settings: Settings) -> bool:
    """Whether the base weights are the packaged ones, which know no photographs."""
    return settings.weights is None and get_preset(settings.preset).weights is not None


def label_studio_client(settings: Settings) -> LabelStudioClient:
    """The client for LABEL_STUDIO_URL."""
    return LabelStudioClient(settings.label_studio_url, settings.label_studio_api_key.get_secret_value())


def image_store(settings: Settings, client: LabelStudioClient) -> ImageStore:
    """The images in MODEL_DIR, fetched within the limits of the settings."""
    return ImageStore(
        settings.images_dir,
        client,
        settings.image_max_bytes,
        settings.image_max_pixels,
        settings.image_timeout_s,
        settings.image_host_rules,
        settings.image_roots,
        settings.label_studio_host,
    )


def version_store(settings: Settings) -> VersionStore:
    """The versions in MODEL_DIR, or at VERSIONS_URL."""
    return VersionStore(
        settings.model_dir, settings.preset, settings.weights, settings.versions_url, settings.model_lines
    )


def open_predictor(settings: Settings) -> Predictor:
    """The preset with the settings' weights, device and precisions. Imports torch."""
    from sspsam import Predictor
    from sspsam.runtime.bfloat16 import is_bfloat16_faster

    predictor = Predictor.from_preset(
        settings.preset,
        settings.device,
        settings.weights,
        settings.image_precision,
        settings.second_look,
        settings.phrase_precision,
    )
    in_bfloat16 = "bfloat16" in (settings.image_precision, settings.phrase_precision)
    if in_bfloat16 and not is_bfloat16_faster(predictor.device):
        logger.warning("bfloat16 is slower here than float32: unset IMAGE_PRECISION and PHRASE_PRECISION")
    return predictor


def load_preset(settings: Settings) -> SwappablePredictor:
    """Loads the preset with the operator's or the packaged weights. Imports torch.

    With `settings.tune_process`, oneDNN then computes the matrix products on a CPU at which it is faster, and
    the predictor may use all cores: request threads need one each.
    """
    from sspsam.runtime.cores import limit_torch_threads
    from sspsam.runtime.product_speeds import use_faster_products

    predictor = open_predictor(settings)
    if settings.tune_process:
        if predictor.device.type == "cpu":
            use_faster_products(settings.model_dir)
        limit_torch_threads()
    return predictor
