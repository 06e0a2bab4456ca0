"""The report of a compilation: facts as plain values, and the tables that people read."""

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table

from .ir.cost import Cost
from .ir.graph import Graph
from .ir.ops import is_op
from .passes.pipeline import Step

PRODUCTS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear")
FAKE_QUANTIZERS = ("fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine")


@dataclass(frozen=True)
class PassReport:
    """One pass: its text, number of changes, seconds, places where it declined, and its own facts."""

    text: str
    changed: int
    seconds: float
    skipped: tuple[tuple[str, str], ...]
    details: dict[str, Any]

    @staticmethod
    def of(step: Step) -> "PassReport":
        skipped = tuple((skip.where, skip.why) for skip in step.result.skipped)
        return PassReport(step.name, step.result.changed, step.seconds, skipped, step.result.details)


@dataclass(frozen=True)
class Report:
    """What a compilation did and what came of it.

    before, after   params, macs, bytes, peak_bytes of the model (batch 1)
    layers          one row per kernel call: node, kernel, instruction
    others          ops that TVM's own code generation computes, with counts
    eager           calls that stay in PyTorch: (op, source line)
    fake_quantized  how many of the `products` compute on quantized values, in float
    facts           what the backend knows: bytes of code and weights, arena, compiler
    seconds         by stage
    """

    target: str
    recipe: str
    before: dict[str, int]
    after: dict[str, int]
    passes: tuple[PassReport, ...] = ()
    layers: tuple[dict[str, str], ...] = ()
    others: dict[str, int] = field(default_factory=dict)
    eager: tuple[tuple[str, str], ...] = ()
    fake_quantized: int = 0
    products: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def int8_kernels(self) -> str:
        """`0 of 52`: how many products run in integers. Fake-quantized layers run in float."""
        return f"0 of {self.products}"

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values."""
        return {**asdict(self), "int8_kernels": self.int8_kernels}

    def __str__(self) -> str:
        console = Console(width=110, record=False, color_system=None)
        with console.capture() as captured:
            console.print(self.__rich__())
        return captured.get()

    def __rich__(self) -> RenderableType:
        return Group(*[part for part in (self._summary(), self._passes(), self._layers()) if part is not None])

    def _summary(self) -> Table:
        table = Table(title=f"{self.target}: {self.recipe or 'no passes'}", title_justify="left")
        for heading in ("", "before", "after"):
            table.add_column(heading, justify="left" if not heading else "right")
        for key, label in (("params", "parameters"), ("macs", "MACs"), ("bytes", "bytes of weights"),
                           ("peak_bytes", "peak activation bytes")):  # fmt: skip
            table.add_row(label, f"{self.before[key]:,}", f"{self.after[key]:,}")
        table.add_row("int8 kernels", "", self.int8_kernels)
        if self.fake_quantized:
            table.add_row("fake-quantized, computed in float", "", f"{self.fake_quantized} of {self.products}")
        for label, value in self.facts.items():
            if isinstance(value, (int, float, str)):
                table.add_row(label.replace("_", " "), "", f"{value:,}" if isinstance(value, int) else str(value))
        for op, line in self.eager:
            table.add_row("stays in PyTorch", line, op)
        return table

    def _passes(self) -> Table | None:
        if not self.passes:
            return None
        table = Table("pass", "changed", "seconds", "declined", title="passes", title_justify="left")
        for entry in self.passes:
            table.add_row(entry.text, str(entry.changed), f"{entry.seconds:.2f}", _declined(entry.skipped))
        return table

    def _layers(self) -> Table | None:
        if not self.layers:
            return None
        table = Table("layer", "kernel", "instruction", title="kernels", title_justify="left")
        for layer in self.layers:
            table.add_row(layer["node"], layer["kernel"], layer["instruction"])
        if self.others:
            table.add_row("others, by TVM", ", ".join(f"{op} x {n}" for op, n in self.others.items()), "")
        return table


def cost_row(entry: Cost) -> dict[str, int]:
    """The totals of a cost."""
    return {"params": entry.params, "macs": entry.macs, "bytes": entry.bytes, "peak_bytes": entry.peak_bytes}


def quantized_layers(graph: Graph) -> tuple[int, int]:
    """How many convs and linears read a fake-quantized weight, and how many there are."""
    products = graph.calls(*PRODUCTS)
    return sum(is_op(node.args[1], *FAKE_QUANTIZERS) for node in products), len(products)


def _declined(skipped: tuple[tuple[str, str], ...]) -> str:
    lines = [f"{where}: {why}" for where, why in skipped[:5]]
    if len(skipped) > 5:
        lines.append(f"and {len(skipped) - 5} more")
    return "\n".join(lines)
