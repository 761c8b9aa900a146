"""Brush RLE codec against label-studio-sdk's converter: identical bytes, and the speed-up.

python benchmarks/brush_rle.py [--repeats 3]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from common.sections import table, write_section
from label_studio_sdk.converter.brush import decode_rle, mask2rle

from sspsam import brush_rle_to_mask, mask_to_brush_rle

HEIGHT, WIDTH = 3000, 4000
LEAST = {"encode": 5.0, "decode": 20.0}


def ragged_mask() -> npt.NDArray[np.bool_]:
    """Slightly blurred noise: about 1.7 million bytes of RLE."""
    noise = np.random.default_rng(0).random((HEIGHT, WIDTH), dtype=np.float32)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 3.6) > 0.5)


def disc() -> npt.NDArray[np.bool_]:
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    return np.asarray((rows - HEIGHT / 2) ** 2 + (columns - WIDTH / 2) ** 2 < (HEIGHT / 3) ** 2)


def best_of(repeats: int, call: Callable[[], Any]) -> tuple[float, Any]:
    times = []
    for _ in range(repeats):
        since_s = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - since_s)
    return min(times), result


def main() -> None:
    """Measures and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rows, failed = [], False
    for name, mask in (("ragged", ragged_mask()), ("disc", disc())):
        picture = mask.astype(np.uint8) * 255
        theirs_s, expected = best_of(options.repeats, lambda picture=picture: mask2rle(picture))
        ours_s, rle = best_of(options.repeats, lambda mask=mask: mask_to_brush_rle(mask))
        if rle != list(expected):
            raise SystemExit(f"{name}: the bytes differ")
        decode_s, flat = best_of(1, lambda rle=rle: decode_rle(rle))
        ours_decode_s, back = best_of(options.repeats, lambda rle=rle: brush_rle_to_mask(rle, HEIGHT, WIDTH))
        if not np.array_equal(np.reshape(flat, (HEIGHT, WIDTH, 4))[..., 3] > 127, back):
            raise SystemExit(f"{name}: the masks differ")
        faster = {"encode": theirs_s / ours_s, "decode": decode_s / ours_decode_s}
        failed |= name == "ragged" and any(faster[what] < least for what, least in LEAST.items())
        rows.append([name, f"{len(rle):,}", f"{faster['encode']:.1f}", f"{faster['decode']:.1f}"])
    write_section(
        "Brush RLE",
        f"Speed-up over `mask2rle` and `decode_rle` of label-studio-sdk on masks of {HEIGHT} x {WIDTH} "
        "pixels, with byte-identical output. Targets on the ragged mask: "
        + ", ".join(f"{what} {least:g}x" for what, least in LEAST.items())
        + ".",
        table(["mask", "bytes", "encode, times as fast", "decode, times as fast"], rows),
    )
    if failed:
        raise SystemExit("slower than the target")


if __name__ == "__main__":
    main()
