"""float32 matrix products on the CPU by MKL, by oneDNN, and as `sspsam.runtime.product_speeds` chooses.

Besides, oneDNN with a copy of the weight in its own layout, which the service does not keep.

python benchmarks/products.py [--rounds 30]
"""

from __future__ import annotations

import argparse

import torch
from common.sections import table, write_section
from common.timing import medians_in_turn

from sspsam.runtime.onednn import has_onednn, multiply_by_mkl, multiply_by_onednn
from sspsam.runtime.product_speeds import use_faster_products

LAYERS = {
    "demo, fused patches of 1 phrase": (273, 128, 512),
    "demo, fused patches of 8 phrases": (2184, 128, 512),
    "ssp-sam-224, fused patches of 1 phrase": (325, 256, 2048),
    "ViT-B, tokens of an image": (4096, 768, 3072),
    "ViT-H, tokens of an image": (4096, 1280, 5120),
}
"""Layer -> rows, inputs, outputs."""
BY_MKL, BY_ONEDNN, PACKED, CHOSEN = "MKL", "oneDNN", "oneDNN, packed weight", "chosen"


def took_s(layer: tuple[int, int, int], rounds: int) -> dict[str, float]:
    """Median seconds, in turn."""
    rows, inputs, outputs = layer
    cells, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs).t()
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.t(), rows)
    ways = {
        BY_MKL: lambda: multiply_by_mkl(cells, weight),
        BY_ONEDNN: lambda: multiply_by_onednn(cells, weight),
        PACKED: lambda: torch.ops.mkldnn._linear_pointwise.default(cells, packed, None, "none", [], ""),
        CHOSEN: lambda: torch.mm(cells, weight),
    }
    return medians_in_turn(ways, rounds)


def main() -> None:
    """Measures the layers and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    if not has_onednn():
        raise SystemExit("PyTorch has no oneDNN for this processor: products are unchanged")
    use_faster_products()
    rows, failed = [], []
    for name, layer in LAYERS.items():
        by = took_s(layer, options.rounds)
        times = by[BY_MKL] / by[CHOSEN]
        operations = 2 * layer[0] * layer[1] * layer[2]
        speeds = [f"{operations / by[way] / 1e9:.0f}" for way in (BY_MKL, BY_ONEDNN)]
        ratios = by[BY_MKL] / by[BY_ONEDNN], by[BY_ONEDNN] / by[PACKED], times
        rows.append([name, *speeds, *(f"{ratio:.2f}" for ratio in ratios)])
        print(*rows[-1], flush=True)
        failed += [name] if times < 0.9 else []
    write_section(
        "Matrix multiplication",
        "Linear layers in float32 on all cores, in GFLOP/s, and times as fast as MKL. MKL does not use "
        "AVX-512 on AMD processors: there oneDNN is up to twice as fast; on others it is slower for some "
        "shapes. The service measures both at its first start and chooses by shape. Target: no layer below "
        "0.9. Weights packed in oneDNN's own layout would need a second copy of them in memory; the service "
        "does without.",
        table(["layer", BY_MKL, BY_ONEDNN, "oneDNN / MKL", "packed / oneDNN", "chosen / MKL"], rows),
    )
    if failed:
        raise SystemExit(f"slower than MKL: {', '.join(failed)}")


if __name__ == "__main__":
    main()
