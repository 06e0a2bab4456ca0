"""Calls that TVM's torch importer takes and converts to something else, found by comparing every op with PyTorch."""

from collections.abc import Callable
from types import SimpleNamespace

from torch import fx

from ....ir.ops import arguments, has_schema, op_name


def is_converted_wrongly(node: fx.Node) -> bool:
    """True for a call whose conversion computes other numbers than PyTorch."""
    fault = _FAULTS.get(op_name(node)) if has_schema(node) else None
    return fault is not None and fault(arguments(node))


def _ignores_alpha(call: SimpleNamespace) -> bool:
    return getattr(call, "alpha", 1) != 1


_FAULTS: dict[str, Callable[[SimpleNamespace], bool]] = {
    "add": _ignores_alpha,
    "sub": _ignores_alpha,
    "rsub": _ignores_alpha,
    "avg_pool2d": lambda call: call.divisor_override is not None,
    "instance_norm": lambda call: call.eps != 1e-5,
    "narrow": lambda call: True,  # it takes the length for the end
    "scaled_dot_product_attention": lambda call: call.scale is not None,
    # Sizes that are no whole multiple round otherwise.
    "upsample_nearest2d": lambda call: not call.scale_factors or any(s != int(s) for s in call.scale_factors),
}
