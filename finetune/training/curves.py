"""Curves of a run: for TensorBoard where it is installed, for MLflow where MLFLOW_TRACKING_URI is set."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from finetune.training.config import ConfigError, TrainConfig

TENSORBOARD_FOLDER = "tensorboard"
MLFLOW_URI_VARIABLE = "MLFLOW_TRACKING_URI"
REPORT_NAME = "report.html"
MLFLOW_RUN_FILE = "mlflow-run"
"""In the output folder: ID of the MLflow run, so that a resumed training continues its curves."""

logger = logging.getLogger(__name__)


class Curves(Protocol):
    """A sink for training curves."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds a point to each named curve."""

    def close(self, failed: bool) -> None:
        """Flushes pending points, and records how the training ended."""


class TensorBoardCurves:
    """Event files for `tensorboard --logdir <output_dir>`."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self._writer.close()


class MLflowCurves:
    """A run on an MLflow server, with the configuration as parameters."""

    def __init__(self, config: TrainConfig) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise ConfigError(
                f"{MLFLOW_URI_VARIABLE} is set, but mlflow is not installed: "
                "pip install 'ssp-sam-assist[mlflow]'"
            ) from error

        self._client = mlflow.MlflowClient()
        self._is_lost = False
        """Whether the server failed: each further point would wait for it, and hold up the training."""
        kept = config.output_dir / MLFLOW_RUN_FILE
        if kept.is_file():
            self._run_id = kept.read_text(encoding="utf-8").strip()
            self._client.update_run(self._run_id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run = self._client.create_run(experiment_id, run_name=config.output_dir.name)
        self._run_id = run.info.run_id
        for key, value in config.to_dict().items():
            self._client.log_param(self._run_id, key, value)
        kept.write_text(self._run_id, encoding="utf-8")

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        from mlflow import MlflowException

        if self._is_lost:
            return
        try:
            for name, value in figures.items():
                self._client.log_metric(self._run_id, name, value, step=step)
        except MlflowException as error:
            self._is_lost = True
            logger.warning("no more curves for MLflow after step %d; the log has them: %s", step, error)

    def close(self, failed: bool) -> None:
        from mlflow import MlflowException

        try:
            self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")
        except MlflowException as error:
            logger.warning("could not tell MLflow that the training ended: %s", error)


def log_outcome(
    output_dir: Path, version: str, reason: str, page: str, metrics: Mapping[str, object]
) -> None:
    """Adds a training's outcome to its MLflow run, if there is one: metrics, verdict and report.

    Args:
        output_dir: Of the training.
        version: Version published from it.
        reason: Reason of the verdict.
        page: The report, HTML.
        metrics: Nested metrics; `{"candidate": {"gIoU": 0.7}}` becomes `candidate/gIoU`.
    """
    kept = output_dir / MLFLOW_RUN_FILE
    if not (os.environ.get(MLFLOW_URI_VARIABLE) and kept.is_file()):
        return
    import mlflow

    client, run_id = mlflow.MlflowClient(), kept.read_text(encoding="utf-8").strip()
    try:
        for name, value in _flat(metrics):
            client.log_metric(run_id, name, value)
        client.set_tag(run_id, "version", version)
        client.set_tag(run_id, "reason", reason)
        client.log_text(run_id, page, REPORT_NAME)
    except mlflow.MlflowException as error:  # the version is published; its folder contains all of this
        logger.warning("could not add %s to MLflow: %s", version, error)


def _flat(metrics: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of nested metrics, under names accepted by MLflow."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}".replace("@", "-"), float(value)


def open_curves(config: TrainConfig, first_step: int) -> list[Curves]:
    """Opens the curve sinks of a run.

    Args:
        config: Of the run.
        first_step: First step of this attempt; later points of an earlier attempt are dropped.

    Raises:
        ConfigError: MLflow is configured but not installed.
    """
    curves: list[Curves] = []
    if find_spec("tensorboard") is not None:
        curves.append(TensorBoardCurves(config.output_dir / TENSORBOARD_FOLDER, first_step))
    else:
        logger.info("no curves for TensorBoard: pip install 'ssp-sam-assist[tensorboard]' adds them")
    if os.environ.get(MLFLOW_URI_VARIABLE):
        curves.append(MLflowCurves(config))
    return curves
