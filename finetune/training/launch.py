"""A training in several processes of this machine, one per GPU.

`python -m finetune.training.launch CONFIG` is one of these processes; `train_together` starts them, with
ranks in the environment, as accelerate and torchrun do. They belong to the parent's process group and end
with it.

Errors:
    TrainingProcessError: one of the processes failed.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Thread

from finetune.training.config import TrainConfig, make_config
from finetune.training.loop import LOG_NAME, ProgressFn, read_log
from finetune.training.ranks import WORLD_SIZE_VARIABLE
from finetune.training.train import TrainResult, train, tune_process

CONFIG_NAME = "config.json"
RESULT_NAME = "result.json"
POLL_S = 0.5


class TrainingProcessError(RuntimeError):
    """A training process failed; its output gives the reason."""


def train_together(config: TrainConfig, count: int, progress: ProgressFn | None = None) -> TrainResult:
    """Runs `finetune.training.train.train` in several processes that share each batch.

    Args:
        config: As for `train`; each process has its own GPU, unless the device is `cpu`.
        count: Number of processes.
        progress: Called periodically with the last log line.

    Raises:
        TrainingProcessError: one of them failed; the others are ended.
    """
    config.output_dir.mkdir(parents=True, exist_ok=True)
    told, result = config.output_dir / CONFIG_NAME, config.output_dir / RESULT_NAME
    values = {name: value for name, value in config.to_dict().items() if value is not None}
    told.write_text(json.dumps(values), encoding="utf-8")
    result.unlink(missing_ok=True)
    shared = os.environ | {
        WORLD_SIZE_VARIABLE: str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "finetune.training.launch", str(told)],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]
    try:
        _watch(running, lambda: _tell(config.output_dir / LOG_NAME, progress))
    finally:
        for process in running:
            process.kill()
            process.wait()
    made = json.loads(result.read_text(encoding="utf-8"))
    return TrainResult(**{**made, "weights": Path(made["weights"])})


def _watch(running: Sequence[subprocess.Popen[bytes]], tell: Callable[[], None]) -> None:
    """Waits until all have ended successfully.

    Raises:
        TrainingProcessError: one failed; the others might wait for it indefinitely.
    """
    while True:
        statuses = [process.poll() for process in running]
        for rank, status in enumerate(statuses):
            if status:
                raise TrainingProcessError(
                    f"process {rank} of {len(running)} of the training ended with status {status}"
                )
        tell()
        if all(status == 0 for status in statuses):
            return
        time.sleep(POLL_S)


def _tell(log: Path, progress: ProgressFn | None) -> None:
    """Content of the last log line."""
    if progress is None or not log.is_file():
        return
    with suppress(ValueError):  # a line is being written
        if lines := read_log(log):
            progress(lines[-1]["step"], lines[-1])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os._exit(1)


def main(told: Path) -> None:
    """Entry point of a process; the first one writes the result next to the configuration."""
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    config = make_config(json.loads(told.read_text(encoding="utf-8")))
    tune_process(config.output_dir)
    result = train(config)
    if os.environ["RANK"] == "0":
        values = {**asdict(result), "weights": str(result.weights)}
        (config.output_dir / RESULT_NAME).write_text(json.dumps(values), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
