"""Canonicalize: many ways of writing the same thing become one, so that later passes meet fewer forms."""

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from ..ir import rewrite
from ..ir.capture import has_effect
from ..ir.graph import Graph
from .base import Context, Pass, Result, Skip
from .canonical_forms import RULES


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Bring a graph into one form, without changing what it computes.

    no-op           before:  %y = clone(%x);  %z = relu(%y)
                    after:   %z = relu(%x)
                    also contiguous, alias, detach, `to` of the same type, and views, slices, expands, permutes and
                    pads that change nothing
    string-padding  before:  %y = conv2d(%x, w[8,4,3,3], padding=same)
                    after:   %y = conv2d(%x, w[8,4,3,3], padding=[1, 1])
                    what is left of an uneven `same` becomes a constant_pad_nd before the conv
    pad-conv        before:  %p = pad(%x, pad=[1, 1, 1, 1]);  %y = conv2d(%p, w)
                    after:   %y = conv2d(%x, w, padding=[1, 1])
    linear          before:  %t = t(w[8,4]);  %y = addmm(b, %x, %t)
                    after:   %y = linear(%x, w[8,4], b)
                    also mm and matmul
    constant        before:  %c = mul(scale[8], offset[8]);  %y = add(%x, %c)
                    after:   %y = add(%x, mul[8])
                    from buffers and frozen parameters; not from batch statistics and quantizers, which change later
    dead-code       before:  %d = relu(%x), and nobody reads %d
                    after:   nothing

    skips:   a detach keeps gradients from a trainable weight
             a no-op stands before a view that needs its layout, or in a graph that writes in place
             the padding before a conv is not symmetric
    """

    name: ClassVar[str] = "canonicalize"

    def run(self, graph: Graph, ctx: Context) -> Result:
        counts = {**dict.fromkeys(RULES, 0), "dead-code": _unread_calls(graph)}
        declined: dict[fx.Node, str] = {}
        while _sweep(graph, ctx, counts, declined):
            pass
        changed = sum(counts.values())
        if changed:
            rewrite.finish(graph)
        left = set(graph.nodes)
        skipped = tuple(Skip.at(node, why) for node, why in declined.items() if node in left)
        return Result(changed, skipped, counts)


def _sweep(graph: Graph, ctx: Context, counts: dict[str, int], declined: dict[fx.Node, str]) -> bool:
    """Offer every call to every rule once. True if one applied."""
    applied = False
    for node in [n for n in graph.nodes if n.op == "call_function"]:
        for name, rule in RULES.items():
            answer = rule(graph, node) if node.users else None
            if isinstance(answer, str):
                declined[node] = answer
            elif answer is not None:
                if not ctx.fuel.take():
                    return False
                declined.pop(node, None)
                answer()
                counts[name] += 1
                applied = True
                break
    return applied


def _unread_calls(graph: Graph) -> int:
    """How many calls nobody reads, directly or through others that nobody reads."""
    read: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        if has_effect(node) or any(user in read for user in node.users):
            read.add(node)
    return sum(node.op == "call_function" and node not in read for node in graph.nodes)
