"""SAM's image encoders: seconds per image and peak memory, against stock code and ViT-H.

Random weights, float32, 1024 px, each in its own process; "stock" is segment_anything's code for the same
module. Speed does not depend on the weights.

    python benchmarks/encoders.py [--repeats 2] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

from common.sections import table, write_section

STOCK = "stock-"
LARGEST = "vit_h"
NAMES = ("mobile", "vit_b", "vit_l", LARGEST, f"{STOCK}vit_b", f"{STOCK}{LARGEST}")


def measure(name: str, repeats: int, device: str) -> dict[str, float]:
    """Median seconds of a forward pass, and its memory without the weights, MiB."""
    import torch
    from segment_anything.modeling import ImageEncoderViT

    from sspsam import build_image_encoder
    from sspsam.presets import IMAGE_ENCODERS
    from sspsam.runtime.product_speeds import use_faster_products

    kind = name.removeprefix(STOCK)
    if kind == name:
        use_faster_products()  # as the service does
    encoder = build_image_encoder(kind).eval().to(device)
    side = IMAGE_ENCODERS[kind].image_size
    picture = torch.randn(1, 3, side, side, device=device)

    def used_mib() -> float:
        if picture.is_cuda:
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before_mib = used_mib()
    seconds = []
    with torch.inference_mode():
        for _ in range(repeats):
            began = time.perf_counter()
            if name.startswith(STOCK):
                ImageEncoderViT.forward(encoder, picture)
            else:
                encoder(picture)
            used_mib()  # waits for a GPU
            seconds.append(time.perf_counter() - began)
    return {"s": statistics.median(seconds), "mib": used_mib() - before_mib}


def main() -> None:
    """Measures each in its own process and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.repeats, options.device)))
        return
    found = {}
    for name in NAMES:
        command = [sys.executable, __file__, "--one", name, "--repeats", str(options.repeats)]
        command += ["--device", options.device]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[name] = json.loads(done.stdout)
    rows = []
    for name, one in found.items():
        of_largest = f"{one['s'] / found[LARGEST]['s']:.3f}"
        stock = found.get(STOCK + name)
        faster = f"{stock['s'] / one['s']:.2f}" if stock else ""
        smaller = f"{one['mib'] / stock['mib']:.2f}" if stock else ""
        rows.append([name, f"{one['s']:.2f}", f"{one['mib']:.0f}", of_largest, faster, smaller])
    head = ["encoder", "s", "MiB", "time / ViT-H", "speed-up over stock", "memory / stock"]
    write_section(
        "SAM image encoders",
        f"One image of 1024 px, random weights, float32 on {options.device}, each encoder in its own "
        "process. Memory excludes the weights. `stock` is segment_anything's implementation. Targets: no "
        "slower than stock, at most 0.6 of its memory; MobileSAM in at most 0.1 of ViT-H's time.",
        table(head, rows),
    )


if __name__ == "__main__":
    main()
