"""The report of a compilation: facts as plain values, and the tables that people read."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.text import Text

from .pass_tables import pass_tables
from .tables import byte_count, name, number, prose, spaced, table

if TYPE_CHECKING:
    from .backends.artifact import Artifact
    from .ir.cost import Cost
    from .ir.graph import Graph
    from .passes.pipeline import Outcome, Step

COSTS = {
    "params": "parameters",
    "macs": "multiply-accumulates",
    "bytes": "bytes of weights",
    "peak_bytes": "peak bytes of activations",
}
BYTES_OF = {"weight_bytes": "weights", "workspace_bytes": "workspace, a thread"}
LAYER = ("node", "kernel", "instruction")
TVM_KERNEL = "TVM: "
# Width of `str(report)`, for logs and notebooks.
WIDTH = 110
# Names that a table lists before it says how many more there are.
LISTED = 4


@dataclass(frozen=True)
class PassReport:
    """One pass: its text, number of changes, seconds, places where it declined, and its own facts."""

    text: str
    changed: int
    seconds: float
    skipped: tuple[tuple[str, str], ...]
    details: dict[str, Any]

    @staticmethod
    def of(step: "Step") -> "PassReport":
        skipped = tuple((skip.where, skip.why) for skip in step.result.skipped)
        return PassReport(step.name, step.result.changed, step.seconds, skipped, step.result.details)


@dataclass(frozen=True)
class Report:
    """What a compilation did and what came of it.

    before, after   params, macs, bytes, peak_bytes of the model (batch 1); empty where it never became a graph
    layers          one row per kernel call: node, kernel, instruction
    others          ops that TVM's own code generation computes, with counts
    eager           calls that stay in PyTorch: (op, source line)
    reasons         why they stay, where it is not that TVM does not know the op
    fake_quantized  how many of the `products` compute on quantized values, in float
    integers        how many of them compute in integers
    half            how many of them compute in float16
    exact           no float op is left between conversions: every machine gives the same bytes
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
    reasons: tuple[str, ...] = ()
    fake_quantized: int = 0
    integers: int = 0
    half: int = 0
    products: int = 0
    exact: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def of(target: str, recipe: str, outcome: "Outcome | None", artifact: "Artifact | None", seconds: dict[str, float],
           eager: tuple[tuple[str, str], ...] = (), reasons: tuple[str, ...] = ()) -> "Report":  # fmt: skip
        """The report of what a pipeline and a backend made; None for what there was not: PyTorch runs the model."""
        counts = Products.of(outcome.graph) if outcome else Products()
        return Report(
            target=target,
            recipe=recipe,
            before=cost_row(outcome.before) if outcome else {},
            after=cost_row(outcome.steps[-1].cost if outcome.steps else outcome.before) if outcome else {},
            passes=tuple(PassReport.of(step) for step in outcome.steps) if outcome else (),
            layers=artifact.layers if artifact else (),
            others=artifact.others if artifact else {},
            eager=artifact.eager if artifact else eager,
            reasons=artifact.reasons if artifact else reasons,
            fake_quantized=counts.fake_quantized,
            integers=artifact.integers if artifact else 0,
            half=counts.half,
            products=counts.total,
            exact=counts.exact,
            facts=artifact.facts if artifact else {"code": "PyTorch"},
            seconds=seconds,
        )

    @property
    def int8_kernels(self) -> str:
        """`52 of 52`: how many products run in integers. Fake-quantized layers run in float."""
        return f"{self.integers} of {self.products}"

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values."""
        return {**asdict(self), "int8_kernels": self.int8_kernels}

    def untimed(self) -> "Report":
        """The same without seconds, for files: the same work gives the same bytes."""
        return replace(self, seconds={}, passes=tuple(replace(entry, seconds=0.0) for entry in self.passes))

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> "Report | None":
        """The report that `as_dict` wrote, through JSON or not. None for a document of another form."""
        values = {key: value for key, value in document.items() if key != "int8_kernels"}
        try:
            passes = tuple(
                PassReport(**{**row, "skipped": tuple(_pairs(row["skipped"]))}) for row in values.pop("passes", ())
            )
            report = Report(
                **{
                    **values,
                    "before": dict(values["before"]),
                    "after": dict(values["after"]),
                    "passes": passes,
                    "layers": tuple({key: str(row[key]) for key in LAYER} for row in values.get("layers", ())),
                    "eager": tuple(_pairs(values.get("eager", ()))),
                    "reasons": tuple(map(str, values.get("reasons", ()))),
                }
            )
            str(report)  # what cannot be printed is no report
        except (AttributeError, KeyError, TypeError, ValueError):
            return None
        return report

    def __str__(self) -> str:
        console = Console(width=WIDTH, color_system=None, markup=False, highlight=False)
        with console.capture() as captured:
            console.print(self)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def __rich__(self) -> RenderableType:
        return spaced(
            Text.assemble((self.target, "bold"), "  ", self.recipe or "no passes"),
            self._costs(),
            self._facts(),
            self._passes(),
            pass_tables(self.passes),
            self._declined(),
            self._kernels(),
        )

    def _costs(self) -> RenderableType:
        rows = [
            (label, f"{self.before[key]:,}", f"{self.after[key]:,}", _change(self.before[key], self.after[key]))
            for key, label in COSTS.items()
            if key in self.before
        ]
        return table("", (name("model, batch 1"), number("before"), number("after"), number("change")), rows)

    def _facts(self) -> RenderableType:
        rows = [("int8 kernels", self.int8_kernels)]
        if self.fake_quantized:
            rows.append(("fake-quantized", f"{self.fake_quantized} of {self.products}, computed in float"))
        if self.half:
            rows.append(("float16", f"{self.half} of {self.products}"))
        rows += [fact_row(key, value) for key, value in self.facts.items() if isinstance(value, (int, float, str))]
        if self.others:
            rows.append(("ops left to TVM", ", ".join(f"{op} x {count}" for op, count in self.others.items())))
        if self.eager:
            rows.append(("stays in PyTorch", ", ".join(f"{op} ({line})" for op, line in self.eager)))
        rows += [("because", why) for why in self.reasons]
        if self.seconds:
            rows.append(("seconds", ", ".join(f"{stage} {spent:.1f}" for stage, spent in self.seconds.items())))
        return table("", (name(), prose()), rows)

    def _passes(self) -> RenderableType | None:
        """Without the seconds where the report comes from a file."""
        rows = [(p.text, p.changed, f"{p.seconds:.2f}", _details(p.details)) for p in self.passes]
        columns = (name("pass"), number("changed"), number("seconds"), prose("facts"))
        if not any(entry.seconds for entry in self.passes):
            rows, columns = [(*row[:2], row[3]) for row in rows], (*columns[:2], columns[3])
        return table("", columns, rows) if rows else None

    def _declined(self) -> RenderableType | None:
        """One row per pass and reason, however many places share it."""
        places: dict[tuple[str, str], list[str]] = {}
        for entry in self.passes:
            for where, why in entry.skipped:
                places.setdefault((entry.text.partition("{")[0], why), []).append(where)
        rows = [(who, why, _listed(where)) for (who, why), where in places.items()]
        return table("", (name("declined"), prose("because"), prose("at")), rows) if rows else None

    def _kernels(self) -> RenderableType | None:
        """One row per kind of kernel; `planish inspect` shows each layer."""
        calls: dict[tuple[str, str], list[str]] = {}
        for layer in self.layers:
            node, kernel, instruction = layer_row(layer)
            calls.setdefault((kernel, instruction), []).append(node)
        rows = [(kernel, instruction, len(nodes), _listed(nodes)) for (kernel, instruction), nodes in calls.items()]
        columns = (prose("kernel"), name("instruction"), number("calls"), prose("layers"))
        return table("", columns, rows) if rows else None


def layer_table(layers: Iterable[dict[str, str]]) -> RenderableType:
    """One row per kernel call, in the order in which they run."""
    return table("", (name("layer"), prose("kernel"), name("instruction")), map(layer_row, layers))


def layer_row(layer: dict[str, str]) -> tuple[str, str, str]:
    """Layer, kernel and instruction as people read them.

    TVM names a kernel of its own after its ops and a counter: `fused_multiply4_tir_round2_add2` is "multiply round
    add". Where such a kernel belongs to no layer, its name stands for one, and says nothing.
    """
    node, kernel, instruction = (layer[key] for key in LAYER)
    if not kernel.startswith(TVM_KERNEL):
        return node, kernel, instruction
    symbol = kernel.removeprefix(TVM_KERNEL)
    words = (word.rstrip("0123456789") for word in symbol.split("_"))
    ops = " ".join(word for word in words if word not in ("fused", "tir"))
    return "" if node == symbol else node, f"{TVM_KERNEL}{ops}", instruction


def fact_row(key: str, value: float | str) -> tuple[str, str]:
    """A fact as people read it: `arena_bytes` 1204224 is `arena`, `1.20 MB`."""
    if isinstance(value, int) and key.endswith("_bytes"):
        return BYTES_OF.get(key) or key.removesuffix("_bytes").replace("_", " "), byte_count(value)
    return key.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)


def cost_row(entry: "Cost") -> dict[str, int]:
    """The totals of a cost."""
    return {key: getattr(entry, key) for key in COSTS}


@dataclass(frozen=True)
class Products:
    """The convs, linears and integer matrix products of a graph, and whether all that it computes is integers."""

    fake_quantized: int = 0
    half: int = 0
    total: int = 0
    exact: bool = False

    @staticmethod
    def of(graph: "Graph") -> "Products":
        import torch

        from .ir.cost import INTEGER_PRODUCTS
        from .ir.integers.packed_weights import WEIGHT_ONLY
        from .ir.ops import WEIGHTED_PRODUCTS, is_op
        from .ir.verify import SCALE_ARGUMENT
        from .passes.quantize.lower.exact import is_exact

        floats, integers = graph.calls(*WEIGHTED_PRODUCTS), graph.calls(*INTEGER_PRODUCTS)
        fake = sum(is_op(node.args[1], *SCALE_ARGUMENT) for node in floats)
        half = sum(node.meta["val"].dtype == torch.float16 for node in floats)
        total = len(floats) + len(integers) + len(graph.calls(WEIGHT_ONLY))
        return Products(fake, half, total, is_exact(graph))


def _change(before: int, after: int) -> str:
    return f"{100 * (after / before - 1):+.1f} %" if before and before != after else ""


def _details(details: Mapping[str, Any]) -> str:
    """The facts of a pass that fit a line: numbers, words and before -> after pairs."""
    written = []
    for key, value in details.items():
        label = key.replace("_", " ")
        if isinstance(value, (list, tuple)) and len(value) == 2 and all(type(v) is int for v in value):
            written.append(f"{label} {value[0]:,} -> {value[1]:,}")
        elif isinstance(value, (bool, str)):
            written.append(f"{label}: {value if isinstance(value, str) else 'yes' if value else 'no'}")
        elif isinstance(value, (int, float)) and (value or isinstance(value, float)):
            written.append(f"{label} {value:,}" if isinstance(value, int) else f"{label} {value:.3g}")
    return ", ".join(written)


def _listed(names: Iterable[str]) -> str:
    """The first few names, each once."""
    counts = Counter(filter(None, names))
    shown = [entry if count == 1 else f"{entry} x {count}" for entry, count in counts.items()]
    more = f" and {len(shown) - LISTED} more" if len(shown) > LISTED else ""
    return ", ".join(shown[:LISTED]) + more


def _pairs(rows: Any) -> list[tuple[str, str]]:
    return [(str(first), str(second)) for first, second in rows]
