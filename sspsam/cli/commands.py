"""`sspsam predict`: masks for phrases from the shell. Also opens the predictor for other commands."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sspsam.cli.models import ModelOption, YesOption, use_model
from sspsam.cli.output import echo
from sspsam.cli.weights import Mirror
from sspsam.cli.weights import app as weights_app

if TYPE_CHECKING:
    from sspsam.predictor import Predictor
    from sspsam.results import Referent
    from sspsam.version_store.store import VersionStore

app = typer.Typer()
app.add_typer(weights_app, name="weights")

DEFAULT_PRESET = "ssp-sam-demo"
CURRENT_VERSION = "current"

PresetOption = Annotated[
    str | None, typer.Option(envvar="PRESET", help=f"Variant of the model; default: {DEFAULT_PRESET}.")
]
SamEncoderOption = Annotated[
    str | None,
    typer.Option(
        envvar="SAM_ENCODER",
        metavar="NAME",
        help="SAM image encoder that replaces the preset's: `mobile` (MobileSAM), vit_b, vit_l or vit_h.",
    ),
]
DeviceOption = Annotated[str, typer.Option(envvar="DEVICE", help="auto, cpu, cuda or cuda:<number>.")]
VersionOption = Annotated[
    str | None,
    typer.Option(
        "--version",
        metavar="ID|FILE",
        help="Fine-tuned version: its id, `current` for the serving one (`current:7`: that of project 7), or "
        "a .safetensors file of fine-tuned tensors. Default: the weights that ship with the preset.",
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        envvar="WEIGHTS",
        metavar="FILE",
        dir_okay=False,
        help="The preset's weights, as written by `sspsam weights convert`; default: those in the package.",
    ),
]
ModelDirOption = Annotated[
    Path | None,
    typer.Option(
        file_okay=False,
        help="Folder of the fine-tuned versions; default: MODEL_DIR, else the running instance's.",
    ),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        file_okay=False,
        help="Act on the `sspsam up` or `sspsam demo` with this data folder. Default: the instance given by "
        "the environment (REDIS_URL, MODEL_DIR, ...), else the running one.",
    ),
]


@app.command()
def predict(
    image: Annotated[Path, typer.Argument(help="The picture.", show_default=False)],
    phrases: Annotated[
        list[str], typer.Argument(metavar="PHRASE...", help="Phrases to segment.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Write the image with the masks drawn on it to this file.", dir_okay=False),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print JSON: per phrase score, box (xyxy, px), COCO RLE mask, and each object's."
        ),
    ] = False,
    model: ModelOption = None,
    mirror: Mirror = "",
    yes: YesOption = False,
    preset: PresetOption = None,
    version: VersionOption = None,
    weights: WeightsOption = None,
    sam_encoder: SamEncoderOption = None,
    model_dir: ModelDirOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Segment the object that each PHRASE refers to in an image.

    Example: sspsam predict street.jpg "the dog on the left" --out seen.png
    """
    if model:
        use_model(model, mirror, yes, sam_encoder)
        preset, weights, sam_encoder = _selected(preset, weights)
    from sspsam.drawing import draw_referents
    from sspsam.images.image_io import read_picture, write_picture

    pixels = read_picture(image)
    predictor = open_predictor(preset, device, version, model_dir, weights, sam_encoder)
    referents = predictor.predict(predictor.embed(pixels), phrases, image=pixels)
    if out is not None:
        write_picture(draw_referents(pixels, referents), out)
    if as_json:
        echo(json.dumps([referent_to_dict(referent) for referent in referents], indent=2))
    else:
        _print_referents(referents)


def _selected(preset: str | None, weights: Path | None) -> tuple[str, Path | None, None]:
    """The parts of the model that `use_model` selected; others on the command line contradict it."""
    own = os.environ["PRESET"], os.environ["WEIGHTS"]
    if (preset or own[0]) != own[0] or (weights and str(weights) != own[1]):
        raise typer.BadParameter("it excludes --preset and --weights", param_hint="--model")
    return own[0], Path(own[1]) if own[1] else None, None


def open_predictor(
    preset: str | None = None,
    device: str = "auto",
    version: str | None = None,
    model_dir: Path | None = None,
    weights: Path | None = None,
    sam_encoder: str | None = None,
) -> Predictor:
    """Loads a preset and, if requested, the fine-tuned tensors of a version.

    Args:
        preset: Name of the variant; None for that of the versions, or the default.
        device: Device of the predictor.
        version: Id in the version store, `current`, `current:<project>`, or path of a safetensors file; None
            for the base weights.
        model_dir: Root of the version store; None for that of the environment, or of the running instance.
        weights: The preset's weights; None for those in the package.
        sam_encoder: Replaces the preset's SAM image encoder.

    Raises:
        typer.BadParameter: no such preset, encoder, device or file.
        CheckpointError, VersionError: weights are missing, damaged or do not match.
    """
    from sspsam import Predictor
    from sspsam.checkpoints.load import read_tensors
    from sspsam.predictor import choose_device
    from sspsam.presets import with_image_encoder
    from sspsam.version_store.store import VersionStore

    is_stored = version is not None and not version.endswith(".safetensors")
    found = _versions_target(preset, model_dir, weights, sam_encoder) if is_stored else {}
    weights = weights or (Path(found["WEIGHTS"]) if "WEIGHTS" in found else None)
    try:
        preset = with_image_encoder(
            preset or found.get("PRESET", DEFAULT_PRESET), sam_encoder or found.get("SAM_ENCODER")
        )
        choose_device(device)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    predictor = Predictor.from_preset(preset, device, weights)
    if version is None:
        return predictor
    if version.endswith(".safetensors"):
        predictor.load_trainable(read_tensors(Path(version)))
        return predictor
    store = VersionStore(
        Path(found["MODEL_DIR"]),
        preset,
        weights,
        found.get("VERSIONS_URL", ""),
        "shared" if found.get("MODEL_LINES") == "shared" else "project",
    )
    version_id = _serving_version(store, version)
    if version_id != store.base_version:
        predictor.load_trainable(store.load(version_id))
    return predictor


def _serving_version(store: VersionStore, version: str) -> str:
    """ID of the version that is meant: `current`, or `current:7` for the line that serves project 7."""
    name, _, project = version.partition(":")
    if name != CURRENT_VERSION:
        return version
    state = store.state()
    if not project:
        return state.current(state.only_line())
    if not project.isdecimal():
        raise typer.BadParameter(f"expected {CURRENT_VERSION}:7 for project 7, got {version!r}")
    return state.current(state.line_of(int(project)))


def _versions_target(
    preset: str | None, model_dir: Path | None, weights: Path | None, sam_encoder: str | None
) -> dict[str, str]:
    """Variables that locate the selected versions; prints the location."""
    from sspsam.instance import default_model_dir, find_target

    options = {"MODEL_DIR": model_dir, "PRESET": preset, "SAM_ENCODER": sam_encoder, "WEIGHTS": weights}
    target = find_target(options, stopped_too=True)
    variables = dict(target.variables)
    variables.setdefault("MODEL_DIR", str(default_model_dir()))
    names = ("MODEL_DIR", "VERSIONS_URL", "PRESET")
    places = {name: variables[name] for name in names if name in variables}
    echo(target.describe(**places), err=True)
    return variables


def referent_to_dict(referent: Referent) -> dict[str, Any]:
    """Plain values for JSON; the mask as compressed COCO RLE, None without a target."""
    from sspsam.images.masks import mask_to_coco_rle

    return {
        "phrase": referent.phrase,
        "no_target": referent.no_target,
        "score": referent.score,
        "box_xyxy": list(referent.box_xyxy),
        "mask": None if referent.no_target else mask_to_coco_rle(referent.mask),
        "instances": [
            {"score": instance.score, "mask": mask_to_coco_rle(instance.mask)}
            for instance in referent.instances
        ],
    }


def _print_referents(referents: Sequence[Referent]) -> None:
    for referent in referents:
        if referent.no_target:
            echo(f"{referent.phrase}: nothing in the image matches")
        else:
            share = 100 * referent.mask.mean()
            echo(f"{referent.phrase}: {share:.1f} % of the image, score {referent.score:.2f}")
