"""A graph made ready for code generation: eval form, no dropout, everything that only weights decide is computed."""

import torch
from torch import fx

from ...ir import rewrite
from ...ir.graph import Graph
from ...ir.ops import is_op, is_random, tensors

# Calls that hand their first input through unchanged in eval form.
IDENTITIES = (
    "dropout", "feature_dropout", "alpha_dropout", "detach", "alias", "contiguous", "clone", "lift_fresh_copy",
)  # fmt: skip


def freeze(graph: Graph) -> Graph:
    """A copy in eval form without identities, whose weight-only computations (a fake-quantized weight) are weights."""
    frozen = graph.copy().eval()
    for node in frozen.calls(*IDENTITIES):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        rewrite.replace(frozen, node, source)
    _fold_constants(frozen)
    rewrite.finish(frozen)
    return frozen


def _fold_constants(graph: Graph) -> None:
    for node in list(graph.nodes):
        if node.op != "call_function" or not node.all_input_nodes or is_op(node, "sym_size") or is_random(node):
            continue
        if all(source.op == "get_attr" for source in node.all_input_nodes) and len(tensors(node.meta["val"])) == 1:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: graph.weight(n).detach())
            with torch.no_grad():
                value = node.target(*args, **kwargs)  # type: ignore[operator]
            if isinstance(value, torch.Tensor):
                constant = rewrite.add_weight(graph, f"{node.name}.constant", value.contiguous(), before=node)
                rewrite.replace(graph, node, constant)
