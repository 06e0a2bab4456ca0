"""Which batch norms of a quantized graph keep their statistics while the graph is trained, and from when on."""

from dataclasses import dataclass

from torch import fx

from ...ir.graph import Graph
from ...ir.ops import is_op
from ..quantize.placement import ACTIVATION_QUANTIZER
from ..quantize.rules import WEIGHT_AXIS, Roles


@dataclass(frozen=True)
class QuantizedNorms:
    """The batch norms with a quantizer behind them, reached through anything but another product.

    Their outputs have a range that is fixed. With the statistics of each batch instead of the running ones the values
    would leave it, and the deployed model would compute another function than the trained one.

    alone   those that stand alone, or behind a value that others read too: they never use batch statistics
    folded  those that are part of a conv or linear layer. With batch statistics they train as Krishnamoorthi's "batch
            norm folded with correction" (arXiv:1806.08342, section 3.2.2): one scale per output channel makes
            quantizing w the same as quantizing w * gamma / sigma_running, and the norm behind it applies the correction
            sigma_running / sigma_batch. Statistics are those of the quantized layer's output
    """

    alone: tuple[fx.Node, ...] = ()
    folded: tuple[fx.Node, ...] = ()

    @staticmethod
    def of(graph: Graph) -> "QuantizedNorms":
        norms = [node for node in graph.calls("batch_norm") if _meets_a_quantizer(node)]
        roles = Roles(graph) if norms else None
        folded = {node for node in norms if roles is not None and roles.fused_head(node) is not None}
        return QuantizedNorms(tuple(n for n in norms if n not in folded), tuple(n for n in norms if n in folded))


def _meets_a_quantizer(node: fx.Node) -> bool:
    """Whether the value, or what is computed from it before the next product, is quantized."""
    seen, left = {node}, [node]
    while left:
        for user in left.pop().users:
            if is_op(user, ACTIVATION_QUANTIZER):
                return True
            if user not in seen and user.op == "call_function" and not is_op(user, *WEIGHT_AXIS):
                seen.add(user)
                left.append(user)
    return False
