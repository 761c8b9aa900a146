"""`sspsam scenes`: sticker scenes as image files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sspsam.cli.output import echo

if TYPE_CHECKING:
    from finetune.data.stickers.phrases import ScenePhrase
    from finetune.data.stickers.scenes import Scene

app = typer.Typer()

TASKS_FILE = "tasks.json"
PHRASES_FILE = "phrases.jsonl"


@app.command()
def scenes(
    out: Annotated[Path, typer.Option(help="Folder to write to.", file_okay=False, show_default=False)],
    count: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Which scenes: the same seed gives the same.")] = 0,
    split: Annotated[str, typer.Option(help="train, val or test; they share no scene.")] = "val",
    nouns: Annotated[
        str, typer.Option(help="What may be in them: nouns, or first, core, base, novel; with commas.")
    ] = "core,base",
    size: Annotated[
        str | None, typer.Option(help="Width and height, px, such as 4000x3000.", show_default="320 to 1024")
    ] = None,
    objects: Annotated[
        str | None,
        typer.Option(
            help="Longer sides of the objects, as fractions of the picture's short side, such as 0.02-0.1.",
            show_default="0.05 to 0.45",
        ),
    ] = None,
    close_ups: Annotated[
        float, typer.Option(min=0, max=1, help="Share of close-ups, with objects of 0.35 to 0.95.")
    ] = 0.0,
    image_prefix: Annotated[
        str, typer.Option(help="What Label Studio puts before a file's name to fetch it.")
    ] = "/data/local-files/?d=",
) -> None:
    """Draw sticker scenes, with phrases that are true of them.

    Writes the pictures, tasks.json (to import into Label Studio, with phrases to try as the field
    "suggestions") and phrases.jsonl (each phrase with its family and its mask as COCO RLE).

    Example: sspsam scenes --out scenes --count 24
    """
    from PIL import Image

    from finetune.data.stickers.dataset import StickerDataset, parse_range, parse_size

    try:
        dataset = StickerDataset(
            split,
            count,
            seed,
            nouns=nouns.split(","),
            canvas_hw=None if size is None else parse_size(size),
            sticker_range=None if objects is None else parse_range(objects),
            close_ups=close_ups,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    out.mkdir(parents=True, exist_ok=True)
    tasks, lines = [], []
    for number in range(count):
        scene, phrases = dataset.scene(number)
        name = f"scene-{number:04d}.png"
        Image.fromarray(scene.image).save(out / name)
        suggestions = " · ".join(phrase.phrase for phrase in phrases)
        tasks.append({"data": {"image": f"{image_prefix}{name}", "suggestions": suggestions}})
        lines += [json.dumps(_describe(name, scene, phrase)) for phrase in phrases]
    (out / TASKS_FILE).write_text(json.dumps(tasks, indent=1) + "\n", encoding="utf-8")
    (out / PHRASES_FILE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    echo(f"{count} scenes with {len(lines)} phrases are in {out}")


def _describe(name: str, scene: Scene, phrase: ScenePhrase) -> dict[str, object]:
    from sspsam import mask_to_coco_rle

    mask = mask_to_coco_rle(scene.mask_of(phrase.targets)) if phrase.targets else None
    return {"image": name, "phrase": phrase.phrase, "family": phrase.family, "mask_rle": mask}
