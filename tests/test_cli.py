"""The command line: commands, start time, and error messages."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from importlib.metadata import entry_points, version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from finetune.metrics import FIGURE_NAMES, MaskMismatchError
from sspsam import Predictor
from sspsam.checkpoints.load import write_tensors
from sspsam.cli import COMMANDS_GROUP, build_app, describe, exit_code, is_expected, main
from sspsam.images.masks import coco_rle_to_mask
from sspsam.version_store.store import UnknownVersionError, VersionError

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
TEST_PRESET = ("--preset", "ssp-sam-test", "--device", "cpu")


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "street.png"
    Image.fromarray(PIXELS).save(path)
    return str(path)


def run(*arguments: str) -> int:
    """Runs a command in this process, and returns its exit code."""
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert isinstance(exited.value.code, int)
    return exited.value.code


def test_every_package_adds_its_commands_under_a_name_of_its_own() -> None:
    app = build_app()
    names = [
        command.name or (command.callback.__name__.replace("_", "-") if command.callback else "")
        for command in app.registered_commands
    ]
    names += [
        str(group.name or (group.typer_instance and group.typer_instance.info.name))
        for group in app.registered_groups
    ]
    assert {"predict", "evaluate", "train", "scenes"} <= set(names)
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert {entry.module.partition(".")[0] for entry in entry_points(group=COMMANDS_GROUP)} == {
        "sspsam",
        "finetune",
        "backend",
        "worker",
    }


def test_it_starts_without_heavy_imports() -> None:
    heavy = {"torch", "open_clip", "flask", "rq", "label_studio_sdk", "matplotlib", "scipy"}
    code = f"import sys; from sspsam.cli import build_app; build_app(); print({heavy!r} & set(sys.modules))"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert printed.stdout.strip() == "set()"


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == f"sspsam {version('ssp-sam-assist')}"
    assert run("--help") == 0
    assert "predict" in capsys.readouterr().out


def test_predict_draws_and_prints(picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "seen.png"
    assert run("predict", picture, "the dog", "the cat on the left", "--out", str(out), *TEST_PRESET) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["the dog", "the cat on the left"]
    with Image.open(out) as drawn:
        assert drawn.width == 60
        assert drawn.height > 40


def test_predict_prints_json_with_the_masks(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", picture, "the dog", "a boat", "--json", *TEST_PRESET) == 0
    answers = json.loads(capsys.readouterr().out)
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    expected = predictor.predict(predictor.embed(PIXELS), ["the dog", "a boat"])
    for answer, referent in zip(answers, expected, strict=True):
        assert (answer["phrase"], answer["no_target"]) == (referent.phrase, referent.no_target)
        assert answer["score"] == pytest.approx(referent.score)
        assert answer["box_xyxy"] == pytest.approx(referent.box_xyxy)
        mask = np.zeros((40, 60), dtype=bool) if answer["mask"] is None else coco_rle_to_mask(answer["mask"])
        np.testing.assert_array_equal(mask, referent.mask)
        assert len(answer["instances"]) == len(referent.instances)


def test_predict_uses_fine_tuned_tensors(
    picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = Predictor.from_preset("ssp-sam-test", "cpu").trainable_state()
    write_tensors(tmp_path / "tuned.safetensors", {key: value * 0.5 for key, value in state.items()})
    printed: list[dict[str, object]] = []
    for extra in ([], ["--version", str(tmp_path / "tuned.safetensors")]):
        assert run("predict", picture, "the dog", "--json", *TEST_PRESET, *extra) == 0
        printed.append(json.loads(capsys.readouterr().out)[0])
    assert printed[0]["box_xyxy"] != printed[1]["box_xyxy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.png", "dog"], "there is no image none.png"),
        (["PICTURE", ""], "the phrase is empty"),
        (["PICTURE", "very " * 90 + "long"], "the phrase is too long"),
        (["TEXT", "dog"], "is not an image in a supported format"),
        (["PICTURE", "dog", "--preset", "sam"], "unknown preset 'sam'"),
        (["PICTURE", "dog", "--device", "abacus"], "unknown device 'abacus'"),
        (["PICTURE", "dog", "--out", "seen.txt"], "cannot be written to seen.txt"),
        (["PICTURE", "dog", "--version", "ssp-sam-test-0009"], "no version 'ssp-sam-test-0009'"),
        (["PICTURE", "dog", "--version", "none.safetensors"], "none.safetensors"),
        (["PICTURE", "dog", "--version", "WRONG"], "do not fit the model"),
    ],
)
def test_predict_says_what_is_wrong(
    picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "text").write_text("no picture")
    save_file({"something": np.zeros(3, np.float32)}, tmp_path / "wrong.safetensors")
    places = {
        "PICTURE": picture,
        "TEXT": str(tmp_path / "text"),
        "WRONG": str(tmp_path / "wrong.safetensors"),
    }
    command = ["predict", *(places.get(one, one) for one in arguments), "--model-dir", str(tmp_path)]
    assert run(*command, *(() if "--preset" in arguments else TEST_PRESET[:2])) in (1, 2)
    captured = capsys.readouterr()
    assert message in " ".join(captured.err.split()), captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_an_error_of_ours_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", "none.png", "dog") == 2
    assert capsys.readouterr().err == "sspsam: there is no image none.png\n"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("weights pull nonsense", "unknown weights 'nonsense'"),
        ("weights verify nonsense", "unknown weights 'nonsense'"),
        ("weights convert x.pt --preset nonsense --out x.safetensors", "unknown preset 'nonsense'"),
        ("weights convert x.pt --preset ssp-sam-test --out x.bin", "named .safetensors"),
        ("weights convert hub:a/c.pth --preset ssp-sam-224 --out y.safetensors", "weights pull hub:a/c.pth"),
        ("weights verify hub:a/x.safetensors", "hub:a/x.safetensors: absent"),
    ],
)
def test_names_that_do_not_exist_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, told: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--model-dir", str(tmp_path)])
    assert ended.value.code in (1, 2)
    out, err = capsys.readouterr()
    assert told in " ".join((out + err).split())
    assert "Traceback" not in err


def test_debug_keeps_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from sspsam.cli import main; main()", "predict", "none.png", "dog"]
    ended = subprocess.run(
        command,
        env={"LOG_LEVEL": "DEBUG"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MaskMismatchError("a value"), 2),
        (UnknownVersionError("a name"), 2),
        (VersionError("a state"), 1),
        (OSError(28, "No space left on device", "/data"), 1),
    ],
)
def test_what_people_can_put_right_has_a_code(error: Exception, code: int) -> None:
    assert is_expected(error)
    assert exit_code(error) == code


@pytest.mark.parametrize(
    "error", [KeyError("x"), ZeroDivisionError("x"), ValueError("x"), AssertionError("x")]
)
def test_mistakes_of_ours_keep_their_traceback(error: Exception) -> None:
    assert not is_expected(error)


def test_errors_are_described_in_one_line() -> None:
    assert describe(OSError(28, "No space left on device", "/data")) == "No space left on device: /data"
    assert describe(VersionError("two\nlines")) == "two lines"
    assert describe(VersionError()) == "VersionError"


def test_evaluate_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report"
    assert (
        run("evaluate", "--dataset", "stickers/val?count=1&phrases=4", "--out", str(out), *TEST_PRESET) == 0
    )
    printed = capsys.readouterr().out
    assert "all stickers" in printed
    assert "nothing" in printed.splitlines()[2], "no column is cut at 80 characters"
    written = json.loads((out / "evaluation.json").read_text())
    assert written["counts"]["images"] == 1
    assert written["about"]["model"] == "ssp-sam-test-base"
    assert (out / "evaluation.md").read_text().startswith("# Evaluation\n")


def test_evaluate_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", "--dataset", "mnist/train", *TEST_PRESET) == 2
    assert capsys.readouterr().err.startswith("sspsam: no data set is named 'mnist/train'")


@pytest.mark.slow
def test_evaluate_writes_both_protocols_and_refuses_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = "stickers/val?count=1&phrases=2&nouns=first"
    for protocol in ("original", "paper"):
        out = tmp_path / protocol
        assert (
            run("evaluate", "--dataset", dataset, *TEST_PRESET, "--protocol", protocol, "--out", str(out))
            == 0
        )
        values = json.loads((out / "evaluation.json").read_text())
        assert values["protocol"] == protocol
        assert set(FIGURE_NAMES) | {"Acc@0.5"} <= set(values["overall"])
        assert f"protocol `{protocol}`" in (out / "evaluation.md").read_text()
    assert run("evaluate", "--dataset", dataset, *TEST_PRESET, "--protocol", "mine") == 2
    assert "expected one of original, paper" in capsys.readouterr().err
