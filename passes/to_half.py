"""to-half: the products of a graph, and what lies between them, in float16."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..ir import rewrite
from ..ir.errors import UsageError
from ..ir.graph import Graph
from ..ir.ops import WEIGHTED_PRODUCTS, arguments, is_op
from .base import Context, Pass, Result, Skip
from .half_types import HalfTypes
from .quantize.collect import bind_inputs
from .selectors import match, prefixes

PRODUCTS = ("conv2d", "conv_transpose2d", "linear")
LARGEST = torch.finfo(torch.float16).max
# Rounding leaves an error below 2**-11 of a layer's weights, by their norms, where it costs each the last bits only.
# Beyond this, weights are among those that float16 holds with fewer bits (below 2**-14), or not at all (2**-25).
MOST_LOST = 2.0**-10
HEADROOM = 4.0  # other inputs may give larger values than the data, and a sum passes larger ones on its way


@dataclass(frozen=True)
class ToHalf(Pass):
    """Compute products and what lies between them in float16; the model's inputs and outputs stay as they are.

    before:  %y = conv2d(%x, w[8,3,3,3]) : f32;  %z = relu(%y) : f32
    after:   %x_half = to(%x, float16);  %y = conv2d(%x_half, w_half[8,3,3,3]) : f16;  %z = relu(%y) : f16
    skips:   a layer that is listed in `keep`; one that has no kernel in float16; one whose weight or bias is computed
             weights beyond 65504; weights so small that float16 holds few of their bits
             with `data`: a layer whose results come near 65504 on the data
             a graph without products in float32

    Norms, softmax, attention and all else that sums many values or takes exponentials of them stay float32: fold batch
    norms first. Kernels of cores with half-precision arithmetic (`planish targets`: asimdhp) sum products in float16
    too, which PyTorch does not: docs/half-precision.md says what that costs.
    """

    name: ClassVar[str] = "to-half"
    provides: ClassVar[frozenset[str]] = frozenset({"half"})
    refuses: ClassVar[frozenset[str]] = frozenset({"fake-quant", "integers"})

    keep: tuple[str, ...] = ()
    """Layers that stay float32: names or patterns of weights, layers or blocks (`head`, `*.conv1`)."""
    data: bool = False
    """Run the data through the model: a layer whose largest result, times 4, is beyond 65504 stays float32."""

    def needed(self) -> frozenset[str]:
        return frozenset({"data"}) if self.data else frozenset()

    def run(self, graph: Graph, ctx: Context) -> Result:
        """Raises UsageError for a selector without a match, and a weight that is not finite."""
        graph.eval()
        products = [n for n in graph.calls(*WEIGHTED_PRODUCTS) if n.meta["val"].dtype == torch.float32]
        reasons = self._reasons(graph, products, ctx)
        wanted, types, changed = set(products) - reasons.keys(), HalfTypes(graph), 0
        for node in list(graph.nodes):
            if node in wanted and ctx.fuel.take():
                types.product(node)
                changed += 1
            elif node.op in ("call_function", "output"):
                types.other(node)
        rewrite.finish(graph)
        skipped = [Skip.at(node, f"{why}; it stays float32") for node, why in reasons.items()]
        if not products:
            skipped = [Skip("the graph", "it has no product in float32")]
        details = {"half_products": changed, "products": len(products)}
        return Result(changed, tuple(skipped), details, withheld=frozenset() if changed else self.provides)

    def _reasons(self, graph: Graph, products: list[fx.Node], ctx: Context) -> dict[fx.Node, str]:
        """The products that stay float32, in their order, and why."""
        labels = {node: prefixes(name) if (name := _weight_name(node)) else [node.name] for node in products}
        advice = "expected a layer's name or a pattern like 'head.*'"
        kept = match(labels, self.keep, self.name, "keep", "layer", advice)
        reasons = {n: "it is listed in 'keep'" if n in kept else _why_not(graph, n, self.name) for n in products}
        if self.data:
            for node, largest in _largest(graph, products, ctx, self.name).items():
                if largest * HEADROOM > LARGEST:
                    why = f"its results reach {largest:g} on the data, where float16 ends at {LARGEST:g}"
                    reasons[node] = reasons[node] or why
        return {node: why for node, why in reasons.items() if why}


def _weight_name(product: fx.Node) -> str | None:
    weight: Any = arguments(product).weight
    return str(weight.target) if weight.op == "get_attr" else None


def _why_not(graph: Graph, node: fx.Node, where: str) -> str:
    """Why a product cannot be float16; empty for one that can."""
    if not is_op(node, *PRODUCTS):
        return f"only {', '.join(PRODUCTS)} have kernels in float16"
    call = arguments(node)
    operands = [n for n in (call.weight, call.bias) if n is not None]
    if any(n.op != "get_attr" for n in operands):
        return "its weight or bias is computed, not stored"
    for operand in operands:
        tensor = graph.weight(operand).detach().double()
        if not bool(torch.isfinite(tensor).all()):
            raise UsageError(where, f"weight '{operand.target}' holds NaN or infinity", "load sound weights")
        if float(tensor.abs().max()) > LARGEST:
            return f"'{operand.target}' holds {float(tensor.abs().max()):g}, where float16 ends at {LARGEST:g}"
        lost = float((tensor.half().double() - tensor).norm())
        if operand is call.weight and lost > MOST_LOST * float(tensor.norm()):
            return f"'{operand.target}' is too small: float16 would lose {lost / float(tensor.norm()):.2%} of it"
    return ""


def _largest(graph: Graph, products: list[fx.Node], ctx: Context, where: str) -> dict[fx.Node, float]:
    """The largest absolute result of each product on the data."""
    found = dict.fromkeys(products, 0.0)
    for inputs in ctx.progress(ctx.batches(graph, where), where):
        with torch.no_grad():
            _Watch(graph, found).run(initial_env=bind_inputs(graph, inputs))
    return found


class _Watch(fx.Interpreter):
    """Runs the model and keeps the largest absolute results."""

    def __init__(self, graph: Graph, found: dict[fx.Node, float]):
        super().__init__(graph.module)
        self.found = found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.found and value.numel():
            self.found[n] = max(self.found[n], float(value.abs().max()))
        return value
