"""sensitivity: how much worse a model gets as each layer alone loses its least important channels."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...ir.errors import UsageError
from ...ir.files import check_writable
from ...ir.graph import Graph
from ..base import Context, Pass, Result, Skip
from ..measure import Measure, measure_for
from ..pipeline_text import did_you_mean
from ..selectors import select
from .groups import Family, Groups, layer_name
from .index.index_graph import IndexGraph
from .score.criteria import CRITERIA, NEEDS
from .score.evidence import eval_form, gather
from .score.ranked import ranked
from .sensitivity_plot import check_plot, draw
from .trials import Trials


@dataclass(frozen=True)
class Sensitivity(Pass):
    """Measure every layer's tolerance of pruning; the graph stays as it is.

    before:  %y = conv2d(%x, w[64,32,3,3], b[64]);  %z = conv2d(relu(%y), v[16,64,1,1])
    after:   the same, and a table: without the least important 10, 25, 50 ... % of these 64 channels the loss is ...
    skips:   a layer that loses no channel at any of the ratios, because it has too few

    Layers whose channels can only go together (a residual stream) are one row. What is measured is the context's
    `evaluate`; else the mean `loss` over labelled data; else the mean squared difference of the outputs to the unpruned
    model's, over data without labels. As Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.2.
    """

    name: ClassVar[str] = "sensitivity"
    # What it tells is what prune-channels would do.
    refuses: ClassVar[frozenset[str]] = frozenset({"fake-quant", "integers"})

    ratios: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9)
    """Shares of a layer's channels to remove, rising, in (0, 1). Each is rounded to whole groups; one always stays."""
    importance: str = "l1"
    """The criterion that says which channels of a layer go first, as in prune-channels."""
    only: tuple[str, ...] = ()
    """Only channels that these layers make: names or patterns of weights, layers or blocks. All where none is given."""
    plot: str | None = None
    """Where to write a plot: a .png, .svg or .pdf file. Lines for a few layers, a heat map for many. Takes
    `pip install 'planish[plot]'`."""

    def __post_init__(self) -> None:
        if not self.ratios or list(self.ratios) != sorted({r for r in self.ratios if 0 < r < 1}):
            what = f"'ratios' is {', '.join(f'{r:g}' for r in self.ratios) or 'empty'}"
            raise UsageError(self.name, what, "expected rising shares to remove, each above 0 and below 1")
        if self.importance not in CRITERIA:
            hint = did_you_mean(self.importance, CRITERIA) or f"it has: {', '.join(CRITERIA)}"
            raise UsageError(self.name, f"unknown importance '{self.importance}'", hint)

    def needed(self) -> frozenset[str]:
        """Some criteria need data, whatever is measured."""
        return self.needs | (NEEDS[self.importance] & {"data"})

    def is_repeatable(self) -> bool:
        """A plot is a file."""
        return self.plot is None

    def run(self, graph: Graph, ctx: Context) -> Result:
        """Measure.

        Raises UsageError for a plot that cannot be written, a pattern without a match, and a context with neither an
        evaluation nor data; for what goes wrong with these see `measure_for` and `gather`.
        """
        if self.plot is not None:
            check_plot(self.plot, self.name)
            check_writable(self.plot)
        with eval_form(graph):
            measure = measure_for(graph, ctx, self.name)
            index = IndexGraph(graph)
            groups, scores = ranked(index, self.importance, gather(graph, ctx, self.importance, self.name))
            rows, skipped = self._rows(groups, ctx)
            values = _measured(Trials(groups), scores, rows, measure, ctx)
            details = self._details(groups, rows, values, measure, baseline=measure.of(graph))
        if self.plot is not None:
            draw(details, self.plot)
        return Result(0, tuple(skipped), details)

    def _rows(self, groups: Groups, ctx: Context) -> tuple[list["_Row"], list[Skip]]:
        chosen = set(select(groups.index.graph.weights, self.only, self.name, "only"))
        rows, skipped = [], []
        for family in groups.families:
            makers = _makers(groups, family)
            if self.only and not chosen & set(makers):
                continue
            size = len(family.groups)
            counts = [min(size - 1, int(np.floor(ratio * size + 0.5))) for ratio in self.ratios]
            if any(counts):
                rows.append(_Row(family, [layer_name(maker) for maker in makers] or [family.layer], counts))
            else:
                why = f"it has {size} groups of channels, of which no ratio up to {self.ratios[-1]:g} removes one"
                skipped.append(Skip(family.layer, why))
        if self.only and not rows and not skipped:
            what = f"no channels that '{self.only[0]}' makes can be removed"
            raise UsageError(self.name, what, "prune-channels says why a layer stays", "name other layers in 'only'")
        return rows, skipped

    def _details(
        self,
        groups: Groups,
        rows: list["_Row"],
        values: dict[tuple[int, int], float],
        measure: Measure,
        baseline: float,
    ) -> dict[str, Any]:
        """JSON-able: per layer its number of groups, how many went at each ratio, and what was measured then."""
        layers = [
            {
                "layer": row.makers[0],
                "with": row.makers[1:],
                "groups": len(row.family.groups),
                "removed": row.counts,
                "values": [values[number, count] if count else baseline for count in row.counts],
            }
            for number, row in enumerate(rows)
        ]
        return {
            "measure": measure.name,
            "higher_is_better": measure.higher_is_better,
            "baseline": baseline,
            "ratios": list(self.ratios),
            "layers": layers,
            "table": _table(layers, self.ratios, measure.name, baseline),
        }


@dataclass(frozen=True)
class _Row:
    """A family, the layers that make its channels, and how many groups go at each ratio."""

    family: Family
    makers: list[str]
    counts: list[int]


def _makers(groups: Groups, family: Family) -> list[str]:
    """The weights that make channels of this family."""
    return [name for name, dim in groups.index.channels.items() if np.isin(groups.number[dim], family.groups).any()]


def _measured(
    trials: Trials, scores: np.ndarray, rows: list[_Row], measure: Measure, ctx: Context
) -> dict[tuple[int, int], float]:
    """(row, number of groups removed) -> what was measured. Ratios that remove as many are measured once."""
    wanted = [(number, count) for number, row in enumerate(rows) for count in dict.fromkeys(row.counts) if count]
    values = {}
    for number, count in ctx.progress(wanted, Sensitivity.name):
        own = rows[number].family.groups
        ascending = own[np.argsort(scores[own], kind="stable")]
        with trials.without(ascending[:count]) as pruned:
            values[number, count] = measure.of(pruned)
    return values


def _table(layers: list[dict[str, Any]], ratios: tuple[float, ...], measure: str, baseline: float) -> dict[str, Any]:
    """Columns and rows of text, for the report."""
    rows = [[label(row), row["groups"], *(f"{value:.4g}" for value in row["values"])] for row in layers]
    return {
        "title": f"{measure} without the least important channels of one layer; {baseline:.4g} with all",
        "columns": ["layer", "groups", *(f"-{100 * ratio:g} %" for ratio in ratios)],
        "rows": rows,
    }


def label(row: dict[str, Any]) -> str:
    """`layer1.0.conv2`, or `stem.0 + 2` for three layers that share their channels."""
    return row["layer"] + (f" + {len(row['with'])}" if row["with"] else "")
