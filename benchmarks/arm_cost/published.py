"""What other engines cost, measured once with this method: million instructions / million model cycles.

One inference, one thread, batch 1, 224 x 224, in November 2026: onnxruntime 1.31.1, ncnn 1.0.20261020, LiteRT 2.3.0 and
ExecuTorch 1.5.1 (both with XNNPACK), from their aarch64 wheels. Instructions and cycles by model and core; - where the
core has no such arithmetic.
"""

from __future__ import annotations

COLUMNS = tuple(
    (model, core) for model in ("efficientnet-lite0", "mobilenet-v2", "resnet18") for core in ("a72", "a76")
)
ROWS: dict[tuple[str, str], str] = {
    ("fp32", "onnxruntime"): "326/236 326/146 182/157 180/93 665/534 666/279",
    ("fp32", "ncnn"): "132/122.5 132/62.0 101/93.9 101/48.5 240/206 240/107",
    ("fp32", "LiteRT"): "158/119.7 155/62.5 124/94.2 121/48.8 666/492 640/253",
    ("fp16", "ncnn"): "- 68/33.3 - 54/26.4 - 130/66.5",
    ("int8", "onnxruntime"): "159/82.3 75/33.1 129/68.2 60/27.9 547/261 186/70.8",
    ("int8", "ncnn"): "175/116 115/48.0 141/99.7 92/41.8 228/180 155/74.9",
    ("int8", "LiteRT"): "141/73.3 64/28.6 115/59.5 50/23.1 587/285 180/72.9",
    ("int8", "ExecuTorch"): "162/86.0 85/38.1 116/59.6 51/22.9 580/281 173/70.4",
}
BARS = {"fp32": 0.88, "fp16": 0.88, "int8": 0.80}  # of the best engine: what planish is held to


def figures(model: str, core: str, precision: str) -> dict[str, tuple[float, float]]:
    """By engine: million instructions and million model cycles. Empty where nothing was published."""
    if (model, core) not in COLUMNS:
        return {}
    column = COLUMNS.index((model, core))
    found = {}
    for (kind, engine), row in ROWS.items():
        if kind == precision and (entry := row.split()[column]) != "-":
            instructions, cycles = entry.split("/")
            found[engine] = float(instructions), float(cycles)
    return found
