"""Process settings: freed memory is reused, OpenMP spins briefly, and neither overrides the environment."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from sspsam.runtime.process import MALLOC_VARIABLES, MEBIBYTE, tuning_enabled

BLOCK = 8 * MEBIBYTE
ROUNDS = 20
PROGRAM = f"""
import ctypes, resource
from sspsam.runtime.process import tune_malloc

c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
print(tune_malloc({4 * BLOCK}) if {{keep}} else None)

def use():
    blocks = [c.malloc(ctypes.c_size_t({{size}})) for _ in range(2)]
    for block in blocks:
        c.memset(ctypes.c_void_p(block), 1, ctypes.c_size_t({{size}}))
    for block in blocks:
        c.free(ctypes.c_void_p(block))

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")


def faults(keep: bool, size: int = BLOCK, **environment: str) -> tuple[str, int]:
    """What `tune_malloc` returned, and the page faults of taking two blocks again and again."""
    rest = {name: value for name, value in os.environ.items() if name not in MALLOC_VARIABLES}
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(keep=keep, size=size)],
        env=rest | environment, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    return said[0], int(said[1])


@glibc
def test_freed_blocks_cost_no_page_faults() -> None:
    said, kept = faults(True)
    assert said == "True"
    assert kept < faults(False)[1] / 10


@pytest.mark.slow
@glibc
def test_what_is_more_goes_back_to_the_system() -> None:
    assert faults(True, 5 * BLOCK)[1] > faults(False, 5 * BLOCK)[1] / 2


@glibc
def test_what_the_environment_says_wins() -> None:
    said, _ = faults(True, MALLOC_TRIM_THRESHOLD_="131072")
    assert said == "False"


SPIN_PROGRAM = """
import os, sys
import backend.web.serve
from sspsam.runtime.process import limit_openmp_spin

assert "torch" not in sys.modules, "OpenMP would have read the environment already"
limit_openmp_spin()
print(os.environ.get("GOMP_SPINCOUNT"))
"""


def spin_count(**environment: str) -> str:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    rest = {name: value for name, value in os.environ.items() if name not in names}
    return run(SPIN_PROGRAM, rest | environment).strip()


def run(program: str, environment: dict[str, str]) -> str:
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.slow
def test_openmp_threads_of_the_service_spin_briefly() -> None:
    assert 1_000 < int(spin_count()) < 100_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "count"),
    [({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "None")],
    ids=["a spin count", "a wait policy"],
)
def test_openmp_settings_of_the_environment_win(environment: dict[str, str], count: str) -> None:
    assert spin_count(**environment) == count


@pytest.mark.parametrize(
    ("value", "enabled"),
    [("", True), ("1", True), ("true", True), ("0", False), ("False", False), ("no", False)],
)
def test_one_variable_turns_tuning_off(monkeypatch: pytest.MonkeyPatch, value: str, enabled: bool) -> None:
    monkeypatch.setenv("TUNE_PROCESS", value)
    assert tuning_enabled() is enabled


OPERATORS = """
import torch

def operators():
    a, b = torch.ones(1100, 1100), torch.ones(1100, 1100)
    with torch.profiler.profile() as profile:
        a @ b, torch.addmm(b[0], a, b), torch.nn.functional.linear(a, b)
    return {event.key for event in profile.key_averages()}
"""
LIBRARY_PROGRAM = f"""{OPERATORS}
import os
import numpy as np
import sspsam, finetune

PREFIXES = ("OMP_", "GOMP_", "MKL_", "MALLOC_")

def state():
    threads = {{name: value for name, value in os.environ.items() if name.startswith(PREFIXES)}}
    return operators(), torch.get_num_threads(), threads

before = state()
predictor = sspsam.Predictor.from_preset("ssp-sam-test", "cpu")
embedding = predictor.embed(np.zeros((40, 60, 3), np.uint8))
predictor.predict(embedding, ["the dog"])
assert state() == before
print("unchanged")
"""


@pytest.mark.slow
def test_a_predictor_changes_nothing_of_the_process() -> None:
    assert run(LIBRARY_PROGRAM, dict(os.environ)) == "unchanged\n"


SERVICE_PROGRAM = f"""
import logging
logging.basicConfig(level="INFO", format="%(message)s")
from backend.web.serve import tune_process
from backend.service import load_preset
from backend.settings import Settings
from sspsam.runtime import product_speeds

# Which is faster differs between machines.
product_speeds.measure = lambda *arguments, **options: dict.fromkeys(product_speeds.SHAPES, 2.0)
settings = Settings(preset="ssp-sam-test", device="cpu")
if settings.tune_process:
    tune_process()
load_preset(settings)
{OPERATORS}
print(any("mkldnn" in name for name in operators()), torch.get_num_threads())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="oneDNN is for x86 alone")
@pytest.mark.parametrize(("variable", "tuned"), [("1", True), ("0", False)])
def test_the_service_tunes_its_process_unless_a_setting_forbids_it(
    variable: str, tuned: bool, tmp_path: Path
) -> None:
    own = {"TUNE_PROCESS": variable, "OMP_NUM_THREADS": "2", "MODEL_DIR": str(tmp_path)}
    environment = os.environ | own
    done = subprocess.run(
        [sys.executable, "-c", SERVICE_PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ([str(tuned), "1"] if tuned else [str(tuned), "2"])
    assert len([line for line in done.stderr.splitlines() if "TUNE_PROCESS=0" in line]) == tuned
