"""SAM's image encoders side by side: seconds of one picture and peak memory, each as a part of ViT-H's.

Random weights, float32, 1024 px, on the CPU, each in a process of its own; "stock" is segment_anything's own
code for the same module. Speed does not hang on what the weights are.

    python benchmarks/encoders.py [--repeats 3] [--names mobile vit_b stock-vit_b vit_h]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

STOCK = "stock-"
NAMES = ("mobile", "vit_b", f"{STOCK}vit_b", "vit_h")
REFERENCE = "vit_h"


def measure(name: str, repeats: int) -> dict[str, float]:
    """Median seconds of a forward pass, and what it needs beside the weights, MiB."""
    import torch
    from segment_anything.modeling import ImageEncoderViT

    from sspsam.presets import IMAGE_ENCODERS
    from sspsam.sam import build_image_encoder

    kind = name.removeprefix(STOCK)
    encoder = build_image_encoder(kind).eval()
    side = IMAGE_ENCODERS[kind].image_size
    picture = torch.randn(1, 3, side, side)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    with torch.inference_mode():
        for _ in range(repeats):
            began = time.perf_counter()
            if name.startswith(STOCK):
                ImageEncoderViT.forward(encoder, picture)
            else:
                encoder(picture)
            seconds.append(time.perf_counter() - began)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"s": statistics.median(seconds), "mib": (peak_kib - before_kib) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--names", nargs="+", default=list(NAMES))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.repeats)))
        return
    found = {}
    for name in options.names:
        command = [sys.executable, __file__, "--one", name, "--repeats", str(options.repeats)]
        found[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    reference = found.get(REFERENCE) or next(iter(found.values()))
    print(f"{'encoder':<14}{'s':>8}{'part':>8}{'MiB':>8}{'part':>8}")
    for name, one in found.items():
        parts = [one[key] / reference[key] for key in ("s", "mib")]
        print(f"{name:<14}{one['s']:>8.2f}{parts[0]:>8.3f}{one['mib']:>8.0f}{parts[1]:>8.3f}")


if __name__ == "__main__":
    main()
