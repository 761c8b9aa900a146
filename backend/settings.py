"""Settings from the environment, shared by backend, worker and schedule."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, quote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from backend.errors import SettingsError
from backend.images.fetching import HostRule
from backend.quiet_hours import QuietHours
from sspsam.images.image_io import IMAGE_MAX_PIXELS
from sspsam.instance import default_model_dir
from sspsam.presets import with_image_encoder
from sspsam.version_store.lines import ModelLines
from sspsam.version_store.places import check_versions_url


def _check_url(url: str) -> str:
    url = url.strip()
    parts = urlsplit(url)
    if url and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError("expected a URL such as http://127.0.0.1:8080")
    return url


def _check_store(url: str) -> str:
    if url:
        check_versions_url(url)
    return url


def _with_password(redis_url: str, password: str) -> str:
    """Adds a password to a redis:// or rediss:// URL that has none; a socket of this machine needs none."""
    scheme, separator, rest = redis_url.partition("://")
    parts = urlsplit(redis_url)
    given = parts.password or "password" in parse_qs(parts.query)
    if not password or given or scheme not in ("redis", "rediss"):
        return redis_url
    user, _, place = rest.rpartition("@")
    return f"{scheme}{separator}{user.rstrip(':')}:{quote(password, '')}@{place}"


def _split(value: object) -> object:
    """A comma-separated text, the environment's form of a list."""
    return [entry.strip() for entry in value.split(",") if entry.strip()] if isinstance(value, str) else value


def _check_hosts(entries: tuple[str, ...]) -> tuple[str, ...]:
    for entry in entries:
        HostRule.parse(entry)
    return entries


def _check_root(root: Path) -> Path:
    if not root.is_absolute() or root == Path("/"):
        raise ValueError("expected the absolute path of a folder, and not /")
    return root


Hosts = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_check_hosts)]
Roots = Annotated[tuple[Annotated[Path, AfterValidator(_check_root)], ...], NoDecode, BeforeValidator(_split)]
Url = Annotated[str, AfterValidator(_check_url)]
StoreUrl = Annotated[str, AfterValidator(_check_store)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
JOB_MODULES = ("worker.jobs", "worker.requested_jobs")
LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses that stand for all of the machine's, and that under which it reaches itself."""


def url_of(host: str, port: int) -> str:
    """URL by which this machine reaches a server that listens on an address."""
    address = LOOPBACK_OF.get(host, host)
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


class Settings(BaseSettings):
    """Each field is read from the environment variable of the same name in capitals."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore")

    label_studio_url: Url = "http://127.0.0.1:8080"
    """URL of Label Studio; images at relative URLs are downloaded from here."""
    label_studio_host: Url = ""
    """Label Studio's own name (its variable of this name), if it differs from label_studio_url: tasks of its
    local files and storages contain it.
    """
    label_studio_api_key: SecretStr = SecretStr("")
    """A personal access token or a legacy token; sent to label_studio_url only."""
    basic_auth_user: str = ""
    """With basic_auth_pass, the credentials that every caller must send."""
    basic_auth_pass: SecretStr = SecretStr("")
    viewer_pass: SecretStr = SecretStr("")
    """A second password for the console, which lets people look and not act; basic_auth_pass does both."""
    webhook_secret: SecretStr = SecretStr("")
    """Value of X-ML-Secret in Label Studio's webhooks (which cannot send Basic auth)."""
    open_access: bool = False
    """Whether the backend starts without some of these secrets; it then listens on loopback only."""
    allowed_hosts: Names = ()
    """Names, or `name:port`, at which callers address this backend, besides localhost, IP addresses and
    public_url's host. By default every name is allowed, if basic_auth_user and basic_auth_pass are set.
    """
    requests_per_minute: Annotated[int, Field(ge=1)] = 6000
    """Per address; Label Studio sends the requests of all annotators from one."""
    model_dir: Path = Field(default_factory=default_model_dir)
    """Versions, cached images, records and training runs."""
    versions_url: StoreUrl = ""
    """Object store for versions: s3://bucket/folder, gs://bucket/folder, or another fsspec URL."""
    model_lines: ModelLines = "project"
    """Whether each project has its own line of versions, or all share one."""
    redis_url: str = "redis://127.0.0.1:6379/0"
    """redis://host:port/db, or unix:///path/to/socket."""
    redis_password: SecretStr = SecretStr("")
    """For a Redis on the network whose redis_url holds no password; any characters, not percent-encoded."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    preset: str = "ssp-sam-demo"
    """Model preset; contains `-with-<encoder>` if sam_encoder selects one."""
    sam_encoder: str = ""
    """A SAM image encoder that replaces the preset's, such as `mobile`."""
    image_precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of SAM's image encoder."""
    phrase_precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of everything that answers phrases and clicks on an embedded image."""
    second_look: Literal["auto", "off", "always"] = "auto"
    """When objects are encoded again by themselves, for sharper masks, and large pictures in tiles: see
    `sspsam.looks`.
    """
    weights: Path | None = None
    """The preset's weights, as written by `sspsam weights convert`; default: those in the package."""
    tune_process: bool = True
    """Whether the service and the training commands apply process settings that make a CPU faster."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 9090
    finetune_after: Annotated[int, Field(ge=1)] = 50
    """Number of corrected masks since the last fine-tune that starts the next one."""
    finetune_interval_min: Annotated[float, Field(ge=0)] = 0.0
    """Minutes from the end of a project's fine-tune to the next one, unless started by hand."""
    finetune_processes: Annotated[int, Field(ge=0)] = 0
    """Processes of a fine-tune, which share each batch; 0: one per GPU of the worker's machine."""
    training_cores: Annotated[int, Field(ge=0)] = 0
    """Cores of fine-tunes and of the other jobs that need the model; 0: all of the machine's but one."""
    training_nice: Annotated[int, Field(ge=0, le=19)] = 5
    """How far these jobs give way to the backend on the same machine: 0 not at all, 19 most."""
    quiet_hours: Names = ()
    """Times of day, such as 08:00-18:00, in which no fine-tune starts, unless started by hand."""
    time_zone: str = "UTC"
    """Time zone of quiet_hours, such as Europe/Berlin."""
    replay_data: str = ""
    """Data set mixed into fine-tunes against forgetting, as in `sspsam train`; default: the preset's."""
    validation_data: str = ""
    """Data set on which a candidate may lose at most validation_tolerance; default: the preset's."""
    validation_tolerance: Annotated[float, Field(ge=0, le=1)] = 0.02
    """In gIoU, 0..1."""
    job_modules: Names = JOB_MODULES
    """Modules whose public functions the worker may run as jobs."""
    public_url: Url = ""
    """URL at which Label Studio reaches this backend; default: http://HOST:PORT."""
    image_max_bytes: Annotated[int, Field(ge=1)] = 100 * 2**20
    image_max_pixels: Annotated[int, Field(ge=1)] = IMAGE_MAX_PIXELS
    """Of images, and of the masks in saved annotations."""
    image_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """For one image, in total."""
    image_hosts: Hosts = ()
    """Hosts that images may come from, besides Label Studio: `cdn.example.com`, `10.0.0.5:8000`,
    `*.example.com`; `*` for every host at a public address.
    """
    image_roots: Roots = ()
    """Folders below which `file://` URLs of images are read; none by default."""
    embedding_cache_bytes: Annotated[int, Field(ge=0)] = 2 * 2**30
    """Memory for image embeddings; evicted by LRU."""
    embedding_store_bytes: Annotated[int, Field(ge=0)] = 10 * 2**30
    """Disk space for image embeddings in MODEL_DIR/embeddings, shared by all processes; 0 disables it."""
    version_cache_bytes: Annotated[int, Field(ge=0)] = 2**30
    """Memory for fine-tuned versions, besides the base version; evicted by LRU. One in use always fits."""
    predict_timeout_s: Annotated[float, Field(gt=0)] = 100.0
    """How long Label Studio waits for an answer (its ML_TIMEOUT_PREDICT): later ones are not computed."""
    max_batch: Annotated[int, Field(ge=1)] = 16
    """Maximum number of phrases in one forward pass; 1 disables batching."""
    batch_wait_ms: Annotated[float, Field(ge=0, le=1000)] = 3.0
    """How long the first phrase of a batch waits for others."""
    queue_limit: Annotated[int, Field(ge=1, le=1000)] = 64
    """Maximum number of requests at the model or waiting for it; further ones are refused as busy."""
    min_speck: Annotated[float, Field(ge=0, lt=1)] = 1e-4
    """Parts and holes of masks below this share of the image are removed; 0 keeps all."""
    prefetch_tasks: Annotated[int, Field(ge=0)] = 16
    """Number of upcoming images per project that the schedule embeds in advance; 0 disables it."""

    def __init__(self, **values: Any) -> None:
        """Reads the environment; values passed as arguments take precedence.

        Raises:
            SettingsError: a variable has an invalid value.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            wrong = [
                f"{'_'.join(map(str, fault['loc'])).upper()}: {fault['msg']} (got {fault['input']!r:.60})"
                for fault in error.errors()
            ]
            raise SettingsError("; ".join(wrong)) from error
        self.redis_url = _with_password(self.redis_url, self.redis_password.get_secret_value())
        try:
            self.preset = with_image_encoder(self.preset, self.sam_encoder)
        except ValueError as error:
            raise SettingsError(f"PRESET, SAM_ENCODER: {error}") from error
        viewer = self.viewer_pass.get_secret_value()
        if viewer and (self.basic_auth is None or viewer == self.basic_auth[1]):
            raise SettingsError("VIEWER_PASS: expected BASIC_AUTH_PASS beside it, with another value")
        try:
            QuietHours.parse(self.quiet_hours, self.time_zone)
        except ValueError as error:
            raise SettingsError(f"QUIET_HOURS, TIME_ZONE: {error}") from error

    @classmethod
    def of(cls, variables: Mapping[str, str]) -> Settings:
        """Settings of variables that may be others than those of the environment.

        Raises:
            SettingsError: as for the environment.
        """
        values = {name.lower(): value for name, value in variables.items() if value}
        return cls(**{name: value for name, value in values.items() if name in cls.model_fields})

    @property
    def images_dir(self) -> Path:
        """Downloaded images, named by the sha256 of their bytes."""
        return self.model_dir / "images"

    @property
    def finetune_pause(self) -> QuietHours:
        """Hours in which no fine-tune starts automatically."""
        return QuietHours.parse(self.quiet_hours, self.time_zone)

    @property
    def image_host_rules(self) -> list[HostRule]:
        return [HostRule.parse(entry) for entry in self.image_hosts]

    @property
    def embeddings_dir(self) -> Path | None:
        """Image embeddings shared by backends and workers; None if disabled."""
        return self.model_dir / "embeddings" if self.embedding_store_bytes else None

    @property
    def backend_url(self) -> str:
        """URL at which Label Studio reaches this backend."""
        return (self.public_url or url_of(self.host, self.port)).rstrip("/")

    @property
    def label_studio_for_browsers(self) -> str:
        """URL at which browsers reach Label Studio."""
        return (self.label_studio_host or self.label_studio_url).rstrip("/")

    @property
    def basic_auth(self) -> tuple[str, str] | None:
        """User and password that callers must send; None without authentication."""
        password = self.basic_auth_pass.get_secret_value()
        return (self.basic_auth_user, password) if self.basic_auth_user or password else None
