"""Draws the sticker atlas that ships in `finetune/data/atlas` from the published art sets.

Run once when the vocabulary or the art changes; not needed at run time:

    npm install --ignore-scripts @iconify-json/noto @iconify-json/noto-v1 @iconify-json/fluent-emoji \
        @iconify-json/fluent-emoji-flat @lobehub/fluent-emoji-3d
    pip install resvg-py pillow
    python tools/build_atlas.py node_modules finetune/data/atlas

It writes `<style>.webp`, one per style: a sheet of 128 px cells in the order of vocabulary.tsv, row by row,
with a lossless alpha channel; and `atlas.json`, which describes the sheets and the sources of the art.
"""

import argparse
import io
import json
from pathlib import Path
from typing import Any

import resvg_py
from PIL import Image

CELL_PX = 128
MARGIN_PX = 3
"""Clear border of a cell, so that neither resampling nor compression mixes neighbours."""
COLUMNS = 16
DRAWN_PX = 512
"""Side of a rendered SVG before it is trimmed and reduced."""
COLOUR_QUALITY = 84

SVG_SETS = {
    "noto": "@iconify-json/noto",
    "noto-v1": "@iconify-json/noto-v1",
    "fluent": "@iconify-json/fluent-emoji",
    "fluent-flat": "@iconify-json/fluent-emoji-flat",
}
RENDER_SETS = {"fluent-3d": "@lobehub/fluent-emoji-3d"}
BORROWED = {("fluent-3d", "paperclip"): "fluent"}
"""Cells drawn from another sheet, because this render shows a trademarked character."""


def draw_svg(icons: dict[str, Any], icon: str) -> Image.Image:
    """Draws one icon of an Iconify set at DRAWN_PX."""
    body = icons["icons"][icon]
    width = body.get("width", icons.get("width", 16))
    height = body.get("height", icons.get("height", 16))
    left, top = body.get("left", 0), body.get("top", 0)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{body["body"]}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=DRAWN_PX, height=DRAWN_PX, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def fit_cell(art: Image.Image) -> Image.Image:
    """Trims the clear border and centres the rest in a cell."""
    solid = art.getchannel("A").point(lambda alpha: 255 if alpha >= 16 else 0)
    art = art.crop(solid.getbbox())
    room = CELL_PX - 2 * MARGIN_PX
    scale = room / max(art.size)
    size = (max(1, round(art.width * scale)), max(1, round(art.height * scale)))
    cell = Image.new("RGBA", (CELL_PX, CELL_PX))
    cell.paste(
        art.resize(size, Image.Resampling.LANCZOS), ((CELL_PX - size[0]) // 2, (CELL_PX - size[1]) // 2)
    )
    return cell


def sheet_of(cells: list[Image.Image]) -> Image.Image:
    rows = -(-len(cells) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CELL_PX, rows * CELL_PX))
    for index, cell in enumerate(cells):
        sheet.paste(cell, (index % COLUMNS * CELL_PX, index // COLUMNS * CELL_PX))
    return sheet


def read_render(folder: Path, point: str) -> Image.Image:
    """Reads the render of a code point, which some files spell with the emoji variation selector."""
    spellings = [folder / f"{point}.webp", folder / f"{point}-fe0f.webp"]
    return Image.open(next(path for path in spellings if path.exists())).convert("RGBA")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def code_points(modules: Path) -> dict[str, str]:
    """Icon name -> code point, as the Noto set lists them."""
    listed = read_json(modules / SVG_SETS["noto"] / "chars.json")
    return {icon: point for point, icon in reversed(list(listed.items()))}


def source_of(modules: Path, package: str) -> dict[str, str]:
    manifest = read_json(modules / package / "package.json")
    return {"package": package, "version": manifest["version"], "license": manifest["license"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", type=Path, help="the node_modules folder with the art packages")
    parser.add_argument("atlas", type=Path, help="the atlas folder, which holds vocabulary.tsv")
    arguments = parser.parse_args()
    lines = (arguments.atlas / "vocabulary.tsv").read_text(encoding="utf-8").splitlines()[1:]
    icons = [line.split("\t")[0] for line in lines]
    points = code_points(arguments.modules)
    sheets: dict[str, list[Image.Image]] = {}
    for style, package in SVG_SETS.items():
        drawings = read_json(arguments.modules / package / "icons.json")
        sheets[style] = [fit_cell(draw_svg(drawings, icon)) for icon in icons]
    for style, package in RENDER_SETS.items():
        renders = arguments.modules / package / "assets"
        sheets[style] = [fit_cell(read_render(renders, points[icon])) for icon in icons]
    for (style, icon), lender in BORROWED.items():
        sheets[style][icons.index(icon)] = sheets[lender][icons.index(icon)]
    for style, cells in sheets.items():
        target = arguments.atlas / f"{style}.webp"
        sheet_of(cells).save(target, quality=COLOUR_QUALITY, alpha_quality=100, method=6)
        print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")
    described = {
        "cell_px": CELL_PX,
        "margin_px": MARGIN_PX,
        "columns": COLUMNS,
        "styles": {s: source_of(arguments.modules, p) for s, p in (SVG_SETS | RENDER_SETS).items()},
    }
    (arguments.atlas / "atlas.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
