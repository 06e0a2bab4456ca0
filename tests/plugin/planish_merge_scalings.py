"""A pass that merges scalings by numbers which follow each other."""

from dataclasses import dataclass

import torch

from planish import Context, Graph, Pass, Result, Skip
from planish.ir import rewrite
from planish.ir.ops import arguments, is_op, only_user

multiply = torch.ops.aten.mul.Tensor


@dataclass(frozen=True)
class MergeScalings(Pass):
    """Merge two multiplications by numbers into one.

    before:  %a = mul(%x, other=0.5);  %b = mul(%a, other=4)
    after:   %b = mul(%x, other=2)

    skips:   the first product has other readers
             the merged factor would exceed `largest`
    """

    name = "merge-scalings"

    largest: float = 65504.0
    """The greatest factor to make. The default is the largest number that float16 can hold."""

    def run(self, graph: Graph, ctx: Context) -> Result:
        changed, skipped = 0, []
        for node in graph.calls("mul"):
            first = node.args[0]
            if not (is_scaling(node) and is_scaling(first)):
                continue
            factor = first.args[1] * node.args[1]
            if only_user(first) is not node:
                skipped.append(Skip.at(node, f"'{first.name}' has other readers"))
            elif abs(factor) > self.largest:
                skipped.append(Skip.at(node, f"the factor {factor:g} would exceed {self.largest:g}"))
            elif ctx.fuel.take():
                value = arguments(first).self
                rewrite.replace(graph, node, rewrite.insert(graph, multiply, (value, factor), before=node))
                changed += 1
        rewrite.finish(graph)
        return Result(changed, tuple(skipped))


def is_scaling(value):
    """A product of a tensor and a Python number."""
    return is_op(value, "mul") and isinstance(arguments(value).other, (int, float))
