"""smooth: outliers of a norm's output move into the weights of the linear layers behind it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ....ir import rewrite
from ....ir.errors import UsageError
from ....ir.graph import Graph
from ....ir.ops import arguments, is_op, op_name
from ....ir.shapes import shape
from ...base import Context, Pass, Result, Skip
from ...forward import forward
from .reference import why_not_own
from .sameness import in_float64, outputs, prove

NORMS = ("layer_norm", "rms_norm")
LEAST = 1e-5  # of a channel's range: no factor is 0 or infinite
# Calls that leave each feature in its place of the last dim, if that dim stays what it is.
MOVES = {
    "dropout", "clone", "contiguous", "alias", "view", "reshape", "flatten", "unflatten", "transpose", "permute",
    "unsqueeze", "select", "slice", "expand", "narrow",
}  # fmt: skip


@dataclass(frozen=True)
class Smooth(Pass):
    """Divide each feature of a norm's output by a factor, and multiply the columns of the linear layers that read it.

    before:  %n = layer_norm(%x, w, b);  %q = linear(%n, v)
    after:   the same calls; feature c of w and b over s[c], column c of v times s[c]
    skips:   a norm without a scale, or over more than the last dim; one that something else than linear layers reads;
             a weight that is shared or computed

    s = largest activation ** alpha / largest weight ** (1 - alpha), per feature: at alpha 0.5 both span alike, and one
    scale for all features of the activation loses little. Exact in float, and proved in float64 to 1e-9 in every run.

    Source: Xiao et al., SmoothQuant: accurate and efficient post-training quantization for large language models,
    ICML 2023, arXiv:2211.10438, equation 4.

    Raises UsageError for what the data are refused for, and an `alpha` out of range.
    """

    name: ClassVar[str] = "smooth"
    refuses: ClassVar[frozenset[str]] = frozenset({"fake-quant"})  # scales are of the activations before
    needs: ClassVar[frozenset[str]] = frozenset({"data"})

    alpha: float = 0.5
    """How much of the difficulty moves from activations into weights, from 0 to 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UsageError(self.name, f"'alpha' is {self.alpha:g}", "expected 0 to 1")

    def run(self, graph: Graph, ctx: Context) -> Result:
        was_training = graph.module.training
        graph.eval()
        try:
            return self._run(graph, ctx)
        finally:
            graph.train(was_training)

    def _run(self, graph: Graph, ctx: Context) -> Result:
        found = {norm: _readers(graph, norm) for norm in graph.calls(*NORMS)}
        skipped = [Skip.at(norm, why) for norm, why in found.items() if isinstance(why, str)]
        readers = {n: r for n, r in found.items() if not isinstance(r, str) and ctx.fuel.take()}
        if not readers:
            return Result(0, tuple(skipped))
        largest, weights = _largest(graph, set(readers), ctx, self.name), in_float64(graph)
        expected, facts, touched = outputs(graph, weights), [], set()
        for norm, products in readers.items():
            columns = [weights[str(arguments(p).weight.target)] for p in products]
            factor = self._factor(largest[norm], torch.stack([c.abs().amax(0) for c in columns]).amax(0))
            call = arguments(norm)
            for held in filter(None, (call.weight, getattr(call, "bias", None))):
                weights[str(held.target)] = weights[str(held.target)] / factor
                touched.add(str(held.target))
            for product, column in zip(products, columns, strict=True):
                weights[str(arguments(product).weight.target)] = column * factor
                touched.add(str(arguments(product).weight.target))
            facts.append(_facts(norm, products, factor))
        prove(graph, weights, expected, self.name)
        rewrite.set_weights(graph, {name: weights[name].to(graph.weight(name)) for name in sorted(touched)})
        rewrite.finish(graph)
        return Result(len(facts), tuple(skipped), {"norms": facts})

    def _factor(self, activations: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """[features]; 1 where a feature is zero on either side."""
        sound = (activations > 0) & (columns > 0)
        factor = activations.clamp(min=LEAST) ** self.alpha / columns.clamp(min=LEAST) ** (1 - self.alpha)
        return torch.where(sound, factor.clamp(min=LEAST), 1.0)


def _readers(graph: Graph, norm: fx.Node) -> list[fx.Node] | str:
    """The linear layers that read a norm, directly or through calls that move values; or why it is left alone."""
    call = arguments(norm)
    if call.weight is None:
        return "it has no scale that could take the factor"
    if len(call.normalized_shape) != 1:
        return f"it runs over {len(call.normalized_shape)} dims"
    for held in filter(None, (call.weight, getattr(call, "bias", None))):
        if held.op != "get_attr":
            return "its scale is computed"
        if len(graph.weight_readers(str(held.target))) > 1:
            return f"its weight '{held.target}' is shared"
    found: list[fx.Node] = []
    values = [norm]
    for value in values:  # grows while it is walked
        for reader in value.users:
            if is_op(reader, "linear") and arguments(reader).input is value:
                if why := why_not_own(graph, reader):
                    return f"{why} ('{reader.name}')"
                found.append(reader)
            elif _keeps_last(reader, value):
                values.append(reader)
            else:
                return f"'{reader.name}' ({op_name(reader)}) reads it too"
    return found or "nothing reads it"


def _keeps_last(call: fx.Node, value: fx.Node) -> bool:
    """True where a call moves values but leaves the last dim as it is."""
    if call.op != "call_function" or op_name(call) not in MOVES:
        return False
    before, after = shape(value), shape(call)
    if not after or after[-1] != before[-1]:
        return False
    last = len(before) - 1
    if is_op(call, "permute"):
        return arguments(call).dims[-1] % len(before) == last
    dims = [getattr(arguments(call), name, None) for name in ("dim", "dim0", "dim1")]
    if is_op(call, "unsqueeze"):
        return arguments(call).dim % len(after) != len(after) - 1
    return all(dim is None or dim % len(before) != last for dim in dims)


def _largest(graph: Graph, norms: set[fx.Node], ctx: Context, where: str) -> dict[fx.Node, torch.Tensor]:
    """Per norm the largest magnitude of each feature over the data, in float64."""
    found: dict[fx.Node, torch.Tensor] = {}

    def watch(node: fx.Node, value: torch.Tensor) -> None:
        if node in norms:
            high = value.abs().flatten(0, -2).amax(0).double()
            found[node] = torch.maximum(found[node], high) if node in found else high

    with torch.no_grad():
        for inputs in ctx.progress(ctx.batches(graph, where), where):
            forward(graph, inputs, watch=watch)
    return found


def _facts(norm: fx.Node, products: list[fx.Node], factor: torch.Tensor) -> dict[str, Any]:
    return {
        "norm": str(arguments(norm).weight.target),
        "layers": [str(arguments(product).weight.target) for product in products],
        "factors": [float(factor.min()), float(factor.max())],
    }
