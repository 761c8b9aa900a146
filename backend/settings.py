"""What the environment says. The backend, the worker and the schedule read the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from backend.errors import SettingsError
from backend.fetching import HostRule
from backend.quiet_hours import QuietHours
from sspsam.presets import with_image_encoder
from sspsam.version_files import check_versions_url


def _check_url(url: str) -> str:
    url = url.strip()
    parts = urlsplit(url)
    if url and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError("expected an address such as http://127.0.0.1:8080")
    return url


def _check_store(url: str) -> str:
    if url:
        check_versions_url(url)
    return url


def _split(value: object) -> object:
    """A text with commas in it, as the environment has lists."""
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
JOB_MODULES = ("worker.jobs",)
EVERY_ADDRESS = ("0.0.0.0", "::")


class Settings(BaseSettings):
    """Each field is an environment variable of the same name, in capitals."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore")

    label_studio_url: Url = "http://127.0.0.1:8080"
    """Where Label Studio answers; pictures at relative addresses are fetched from here."""
    label_studio_host: Url = ""
    """What Label Studio calls itself (its own variable of this name), where that is not label_studio_url:
    tasks of its local files and storages name it."""
    label_studio_api_key: SecretStr = SecretStr("")
    """A personal access token or a legacy token; sent to label_studio_url and to nothing else."""
    basic_auth_user: str = ""
    """With basic_auth_pass, what every caller must send."""
    basic_auth_pass: SecretStr = SecretStr("")
    webhook_secret: SecretStr = SecretStr("")
    """What Label Studio's webhook sends in X-ML-Secret (it cannot send Basic auth)."""
    open_access: bool = False
    """Whether the backend starts without some of these secrets; it then listens on this machine alone."""
    requests_per_minute: Annotated[int, Field(ge=1)] = 6000
    """Of one address; Label Studio asks for all its annotators from one."""
    model_dir: Path = Path("models")
    """Versions, cached images, records and training runs."""
    versions_url: StoreUrl = ""
    """Where versions lie instead: s3://bucket/folder, gs://bucket/folder, or what else fsspec reads."""
    redis_url: str = "redis://127.0.0.1:6379/0"
    """redis://host:port/db, or unix:///path/to/socket."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    preset: str = "ssp-sam-demo"
    """Which model; its name says `-with-<encoder>` where sam_encoder names one."""
    sam_encoder: str = ""
    """A SAM image encoder in place of the preset's own, such as `mobile`."""
    image_precision: Literal["float32", "bfloat16"] = "float32"
    """What SAM's image encoder computes in."""
    weights: Path | None = None
    """The preset's weights, as `sspsam weights convert` writes them; without it, those in the package."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 9090
    finetune_after: Annotated[int, Field(ge=1)] = 50
    """Corrected masks since the last fine-tune that start the next one."""
    finetune_interval_min: Annotated[float, Field(ge=0)] = 0.0
    """Minutes from the end of a project's fine-tune to the start of the next, unless a person says now."""
    finetune_processes: Annotated[int, Field(ge=0)] = 0
    """Processes of a fine-tune, which share each batch; 0: one for each GPU of the worker's machine."""
    quiet_hours: Names = ()
    """Times of day, such as 08:00-18:00, in which no fine-tune starts, unless a person says now."""
    time_zone: str = "UTC"
    """Of quiet_hours; a name such as Europe/Berlin."""
    replay_data: str = ""
    """Data set mixed into a fine-tune against forgetting, as `sspsam train` names it; or the preset's."""
    validation_data: str = ""
    """Data set on which a candidate may not lose more than validation_tolerance; else the preset's own."""
    validation_tolerance: Annotated[float, Field(ge=0, le=1)] = 0.02
    """In gIoU, 0..1."""
    job_modules: Names = JOB_MODULES
    """Modules whose public functions the worker runs as jobs."""
    public_url: Url = ""
    """Where Label Studio reaches this backend; by default http://HOST:PORT."""
    image_max_bytes: Annotated[int, Field(ge=1)] = 100 * 2**20
    image_max_pixels: Annotated[int, Field(ge=1)] = 100_000_000
    """A third of a gigabyte of RGB."""
    image_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """For the whole of one image."""
    image_hosts: Hosts = ()
    """Hosts that images come from besides Label Studio: `cdn.example.com`, `10.0.0.5:8000`, `*.example.com`;
    `*` is every host at a public address."""
    image_roots: Roots = ()
    """Folders below which `file://` addresses of images are read; none by default."""
    embedding_cache_bytes: Annotated[int, Field(ge=0)] = 2 * 2**30
    """Memory for image embeddings; the least recently used leave first."""
    embedding_store_bytes: Annotated[int, Field(ge=0)] = 10 * 2**30
    """Of the image embeddings in MODEL_DIR/embeddings, which all processes share; 0 keeps none there."""
    predict_timeout_s: Annotated[float, Field(gt=0)] = 100.0
    """How long Label Studio waits for an answer (its ML_TIMEOUT_PREDICT): later ones are not computed."""
    max_batch: Annotated[int, Field(ge=1)] = 16
    """Phrases that may share a forward pass; 1 answers each by itself."""
    batch_wait_ms: Annotated[float, Field(ge=0, le=1000)] = 3.0
    """For how long the first phrase of a pass waits for others."""
    queue_limit: Annotated[int, Field(ge=1, le=1000)] = 64
    """Requests at the model or waiting for it; further ones are told that it is busy."""
    min_speck: Annotated[float, Field(ge=0, lt=1)] = 1e-4
    """Parts and holes of masks that are smaller than this share of the picture are not sent; 0 sends all."""
    prefetch_tasks: Annotated[int, Field(ge=0)] = 16
    """Pictures of each project's next tasks that the schedule embeds ahead; 0 embeds none."""

    def __init__(self, **values: Any) -> None:
        """Reads the environment; values given here go before it.

        Raises:
            SettingsError: a variable holds something that it cannot mean.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            wrong = [
                f"{'_'.join(map(str, one['loc'])).upper()}: {one['msg']} (got {one['input']!r:.60})"
                for one in error.errors()
            ]
            raise SettingsError("; ".join(wrong)) from error
        try:
            self.preset = with_image_encoder(self.preset, self.sam_encoder)
        except ValueError as error:
            raise SettingsError(f"PRESET, SAM_ENCODER: {error}") from error
        try:
            QuietHours.parse(self.quiet_hours, self.time_zone)
        except ValueError as error:
            raise SettingsError(f"QUIET_HOURS, TIME_ZONE: {error}") from error

    @property
    def images_dir(self) -> Path:
        """Fetched images, each named by the sha256 of its bytes."""
        return self.model_dir / "images"

    @property
    def finetune_pause(self) -> QuietHours:
        """When no fine-tune starts by itself."""
        return QuietHours.parse(self.quiet_hours, self.time_zone)

    @property
    def image_host_rules(self) -> list[HostRule]:
        return [HostRule.parse(entry) for entry in self.image_hosts]

    @property
    def embeddings_dir(self) -> Path | None:
        """Image embeddings that backends and workers share; None where none are kept."""
        return self.model_dir / "embeddings" if self.embedding_store_bytes else None

    @property
    def backend_url(self) -> str:
        """Where Label Studio reaches this backend."""
        host = "127.0.0.1" if self.host in EVERY_ADDRESS else self.host
        return (self.public_url or f"http://{host}:{self.port}").rstrip("/")

    @property
    def label_studio_for_browsers(self) -> str:
        """Where people reach Label Studio."""
        return (self.label_studio_host or self.label_studio_url).rstrip("/")

    @property
    def basic_auth(self) -> tuple[str, str] | None:
        """Name and password that callers must send; None when everybody may ask."""
        password = self.basic_auth_pass.get_secret_value()
        return (self.basic_auth_user, password) if self.basic_auth_user or password else None
