"""Integer ops: what a quantized graph is made of once its fake quantizers are gone.

These ops in plain PyTorch ARE the integer contract: whatever runs such a graph (a compiled kernel on x86 or ARM, a C
program, an ONNX file) gives the same integers, bit for bit. Every op is therefore exact integer arithmetic, or float32
arithmetic whose every step is rounded once, to even, with no room for a fused multiply-add.

    quantize          float32 -> int8 or uint8        clamp(rint(x / scale) + zero_point)
    dequantize        int8 or uint8 -> float32        (q - zero_point) * scale
    *_int32           products and sums of integers   exact, in int32
    requantize        int32 -> int8 or uint8          clamp(rint(f32(acc) * multiplier[channel]) + zero_point)
    dequantize_int32  int32 -> float32                f32(acc) * scale[channel]
    add_int8          sum of two scaled integers      exact on a grid of 2**-shift, then rounded half to even
    lookup_int8       any unary function              256 entries
    upsample_*        resized maps                    positions and weights are integer tables

One op is not exact: `linear_weight_only` is a float32 linear layer whose weights are stored in few bits.

`linear_dynamic` and `lstm_dynamic` (dynamic.py) take and give floats, and quantize their input with a scale of its own
at run time. The first is exact as above; the second has sigmoids and tanhs between its products.

Ops that only move integers (reshapes, concatenation, maximum) stay those of ATen.

They are registered in the namespace `planish` when the ir is imported. Shapes may be symbolic; none has a gradient.
Zero points are subtracted here; a kernel folds them into the bias.
"""

from . import conversions, dynamic, elementwise, packed_weights, pooling, products, resizing  # noqa: F401  registers the ops
