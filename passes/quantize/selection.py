"""Which calls stay in float because the user says so."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from torch import fx

from ...ir.errors import UsageError
from ...ir.graph import Graph
from ...ir.ops import op_name
from ..layers.ends import ends
from ..selectors import match, prefixes
from .rules import WEIGHT_AXIS, Role, Roles, stored_weight


@dataclass(frozen=True)
class Selection:
    """What to leave in float, by selectors: a name or pattern of a weight, layer or block, an op, a module's class.

    keep   stays in float        only   if given, all products that it does not name stay in float
    first  whether the products that no other one stands before stay in float; last: behind
    """

    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    first: bool = False
    last: bool = False

    def floats(self, graph: Graph, where: str) -> dict[fx.Node, str]:
        """The calls that stay in float, each with the reason.

        Raises UsageError for a selector without a match, and for a product that both `keep` and `only` name.
        """
        roles = Roles(graph)
        calls = [n for n in graph.nodes if n.op == "call_function" and roles[n] is not Role.FLOAT]
        products = {n for n in calls if roles[n] is Role.PRODUCT}
        has_classes = any("nn_module_stack" in node.meta for node in calls)
        match_all = partial(_match, where=where, has_classes=has_classes)
        kept = match_all({n: _labels(n) for n in calls}, self.keep, option="keep")
        wanted = match_all({n: _labels(n) for n in calls if n in products}, self.only, option="only")
        if both := [n for n in wanted if n in kept]:
            what = f"'{wanted[both[0]]}' in 'only' and '{kept[both[0]]}' in 'keep' both name {_name(both[0])}"
            raise UsageError(where, what, "take it out of one of them")
        reasons: dict[fx.Node, str] = {}
        if self.only:
            reasons |= dict.fromkeys(products - set(wanted), "it is not in 'only'")
        for flag, position in ((self.first, "first"), (self.last, "last")):
            found = at_end(graph, position) if flag else set()
            reasons |= dict.fromkeys(found, f"it is a {position} layer")
        return reasons | {n: f"'keep' lists '{pattern}'" for n, pattern in kept.items()}


def at_end(graph: Graph, position: str) -> set[fx.Node]:
    """The products that no other product stands before ("first") or behind ("last")."""
    return ends(graph, set(graph.calls(*WEIGHT_AXIS)), position == "first")


def _match(
    labels: dict[fx.Node, list[str]], patterns: Iterable[str], *, where: str, option: str, has_classes: bool
) -> dict[fx.Node, str]:
    if has_classes:
        advice = "expected a weight or layer ('head.*'), an op ('conv2d') or a module's class ('Linear')"
        return match(labels, patterns, where, option, "layer, op or class", advice)
    advice = "expected a weight or layer ('head.*') or an op ('conv2d'); this graph was saved, which keeps no classes"
    return match(labels, patterns, where, option, "layer or op", advice)


def _labels(node: fx.Node) -> list[str]:
    """The op, the names that its weight lies under, and the classes of the modules whose forward made the call."""
    weight = stored_weight(node) if op_name(node) in WEIGHT_AXIS else None
    classes = [str(kind).rpartition(".")[2] for _, kind in node.meta.get("nn_module_stack", {}).values()]
    return [op_name(node), *(prefixes(str(weight.target)) if weight is not None else ()), *classes]


def _name(node: fx.Node) -> str:
    weight = stored_weight(node)
    return f"'{weight.target}'" if weight is not None else f"'{node.name}'"
