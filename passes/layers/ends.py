"""Which layers are the first and the last ones of a graph."""

from collections.abc import Set

from torch import fx

from ...ir.graph import Graph


def ends(graph: Graph, layers: Set[fx.Node], first: bool) -> set[fx.Node]:
    """The layers that no other layer stands before (behind, if not `first`)."""
    nodes = list(graph.nodes) if first else list(graph.nodes)[::-1]
    passed: set[fx.Node] = set()
    found = set()
    for node in nodes:
        is_passed = any(n in passed for n in (node.all_input_nodes if first else node.users))
        if node in layers and not is_passed:
            found.add(node)
        if node in layers or is_passed:
            passed.add(node)
    return found
