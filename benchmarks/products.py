"""float32 matrix products on the CPU: oneDNN, as used by `sspsam.runtime.onednn`, against MKL.

python benchmarks/products.py [--rounds 30]
"""

from __future__ import annotations

import argparse

import torch
from common.sections import table, write_section
from common.timing import medians_in_turn

from sspsam.runtime.onednn import use_onednn_matmul

LAYERS = {
    "demo, fused patches of 1 phrase": (273, 128, 512),
    "demo, fused patches of 8 phrases": (2184, 128, 512),
    "ssp-sam-224, fused patches of 1 phrase": (325, 256, 2048),
    "ViT-B, tokens of an image": (4096, 768, 3072),
    "ViT-H, tokens of an image": (4096, 1280, 5120),
}
"""Layer -> rows, inputs, outputs."""
BY_MKL, BY_ONEDNN = "MKL", "oneDNN"


def took_s(layer: tuple[int, int, int], rounds: int) -> dict[str, float]:
    """Median seconds, in turn. Products with a given output matrix always use MKL."""
    rows, inputs, outputs = layer
    cells, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs).t()
    result = torch.empty(rows, outputs)
    ways = {
        BY_MKL: lambda: torch.mm(cells, weight, out=result),
        BY_ONEDNN: lambda: torch.mm(cells, weight),
    }
    return medians_in_turn(ways, rounds)


def main() -> None:
    """Measures the layers and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    if not use_onednn_matmul():
        raise SystemExit("PyTorch has no oneDNN for this processor: products are unchanged")
    rows, failed = [], []
    for name, layer in LAYERS.items():
        by = took_s(layer, options.rounds)
        times = by[BY_MKL] / by[BY_ONEDNN]
        operations = 2 * layer[0] * layer[1] * layer[2]
        rows.append([name, *(f"{operations / by[way] / 1e9:.0f}" for way in by), f"{times:.2f}"])
        print(*rows[-1], flush=True)
        failed += [name] if times < 0.9 else []
    write_section(
        "Matrix multiplication",
        "Linear layers in float32 on all cores, in GFLOP/s. MKL does not use AVX-512 on AMD processors; on "
        "other processors the two may be equally fast.",
        table(["layer", BY_MKL, BY_ONEDNN, "speed-up"], rows),
    )
    if failed:
        raise SystemExit(f"slower than MKL: {', '.join(failed)}")


if __name__ == "__main__":
    main()
