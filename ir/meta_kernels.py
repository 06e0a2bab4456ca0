"""Shape functions that torch lacks, registered when the ir is imported.

torch 2.13 has a fake-quant op with tensor scales but no Meta kernel for it: without one, no quantized graph could have
a symbolic batch. A later torch that brings the kernel keeps its own.
"""

import torch

_FAKE_QUANT = "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams"

_library = torch.library.Library("aten", "IMPL")


def _fake_quant(values, scale, zero_point, fake_quant_enabled, quant_min, quant_max):
    """Quantized values and the mask that the straight-through gradient uses, both of the input's shape."""
    return torch.empty_like(values), torch.empty_like(values, dtype=torch.bool)


if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{_FAKE_QUANT}", "Meta"):
    _library.impl(_FAKE_QUANT, _fake_quant, "Meta")
