"""What torch.compile's dry run prints: the ops that go to TVM, and those that stay, with counts and source lines."""

from collections import Counter

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...ir.cost import INTEGER_PRODUCTS
from ...ir.graph import Graph
from ...ir.ops import op_name
from ..hybrid import RegionPlan
from ..partition import PRODUCTS, is_computation


def coverage_table(plan: RegionPlan, graph: Graph) -> RenderableType:
    """Counts of ops by where they would run."""
    taken = Counter(op_name(n) for region in plan.split.regions.values() for n in region.nodes if is_computation(n))
    title = f"planish dry run: {len(plan.split.regions)} regions"
    goes = Table("goes to TVM", "calls", title=title, title_justify="left")
    for op, count in taken.most_common():
        goes.add_row(op, str(count))
    integers = sum(taken[op] for op in INTEGER_PRODUCTS)
    products = sum(op_name(node) in (*PRODUCTS, *INTEGER_PRODUCTS) for node in graph.nodes)
    parts: list[RenderableType] = [goes, Text(f"int8 kernels: {integers} of {products} products")]
    if plan.eager:
        left = Table("stays in PyTorch", "source line")
        for op, line in plan.eager:
            left.add_row(Text(op), Text(line))
        parts += [left, *(Text(f"because {why}") for why in plan.reasons)]
    return Group(*parts)
