"""The plot of a sensitivity analysis: one line per layer, or a heat map where there are many layers."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...ir.errors import UsageError
from ...ir.files import write_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What would differ from run to run in each kind of file.
METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
MOST_LINES = 8
# Okabe and Ito's palette, which people with any colour vision tell apart; markers say it once more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MARKERS = "osD^vP*X"
LONGEST_LABEL = 36
ROW_TITLE = "layer + others that share its channels", "(groups of channels)"
# Dark cells are spread evenly over this power of the harm: one layer that breaks the model must not hide the others.
GAMMA, GAMMA_OF_SQUARES = 0.5, 0.25
# Inches. A heat map grows with its layers up to what viewers can show, and then its rows get thinner.
WIDTH, ROW, TALLEST = 8.0, 0.24, 60.0


def check_plot(path: str, where: str) -> None:
    """Raises UsageError for another kind of file, or where matplotlib is not installed."""
    suffix = Path(path).suffix.lower()
    if suffix not in METADATA:
        raise UsageError(where, f"the plot '{path}' is no {' or '.join(METADATA)} file", "name one that is")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError(where, "a plot needs matplotlib", "pip install 'planish[plot]'") from error


def draw(details: Mapping[str, Any], path: str) -> None:
    """Write what `Sensitivity` found (its details) as a plot. The same details give the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {**matplotlib.rcParamsDefault, "svg.hashsalt": "planish", "font.size": 9, "axes.titlesize": 10}
    del style["backend"]
    with matplotlib.rc_context(style):  # whatever the user's own settings are
        layers = len(details["layers"])
        if layers <= MOST_LINES:
            figure = Figure(figsize=(WIDTH, 4.5), layout="constrained")
            _lines(figure.add_subplot(), details)
        else:
            figure = Figure(figsize=(WIDTH, min(1.6 + ROW * layers, TALLEST)), layout="constrained")
            _heat_map(figure, figure.add_subplot(), details)
        suffix = Path(path).suffix.lower()
        with write_aside(path) as draft:
            figure.savefig(draft, format=suffix[1:], dpi=150, metadata=METADATA[suffix])


def _lines(axes: "Axes", details: Mapping[str, Any]) -> None:
    """Measured values over the share of channels that really went, which is rounded to whole channels."""
    baseline = details["baseline"]
    worst_first = sorted(details["layers"], key=lambda row: row["values"][-1], reverse=not details["higher_is_better"])
    for position, row in enumerate(worst_first):
        points = dict(zip([0, *row["removed"]], [baseline, *row["values"]], strict=True))
        shares = [100 * count / row["groups"] for count in points]
        style = {"color": COLOURS[position], "marker": MARKERS[position], "markersize": 4.5, "linewidth": 1.5}
        axes.plot(shares, list(points.values()), label=f"{_label(row)}  ({row['groups']})", **style)
    axes.axhline(baseline, color="#888888", linewidth=1.0, linestyle="--", zorder=0, label=f"unpruned: {baseline:.4g}")
    axes.set_xlim(-2, 102)
    axes.set_xlabel("channels removed from the layer alone, %")
    axes.set_ylabel(details["measure"])
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        title="\n".join(ROW_TITLE),
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        frameon=False,
        alignment="left",
    )
    axes.set_title(f"Sensitivity to pruning, by {details['measure']}", loc="left")


def _heat_map(figure: "Figure", axes: "Axes", details: Mapping[str, Any]) -> None:
    """Layers in the order of the model from the top, ratios from the left; dark is worse."""
    from matplotlib.colors import PowerNorm

    sign, baseline, layers = 1 if details["higher_is_better"] else -1, details["baseline"], details["layers"]
    harm = [[max(sign * (baseline - value), 0.0) for value in row["values"]] for row in layers]
    largest = max(max(row) for row in harm) or 1.0
    gamma = GAMMA_OF_SQUARES if "squared" in details["measure"] else GAMMA
    norm = PowerNorm(gamma, 0, largest)
    image = axes.imshow(harm, aspect="auto", cmap="YlOrRd", norm=norm, interpolation="nearest")
    size = min(8.0, 0.72 * 72 * (figure.get_figheight() - 1.6) / len(layers))
    if size >= 4:
        _write_values(axes, layers, [[norm(value) for value in row] for row in harm], size)
    axes.set_yticks(range(len(layers)), [f"{_label(row)}  ({row['groups']})" for row in layers], fontsize=max(size, 2))
    axes.set_xticks(range(len(details["ratios"])), [f"{100 * ratio:g} %" for ratio in details["ratios"]])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("channels removed from the layer alone")
    axes.set_ylabel(" ".join(ROW_TITLE), fontsize=8)
    axes.set_title(f"Sensitivity to pruning, by {details['measure']} (unpruned: {baseline:.4g})", loc="left")
    direction = "lower" if details["higher_is_better"] else "higher"
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 4.0 / figure.get_figheight()), pad=0.02)
    ticks = [float(norm.inverse(darkness / 4)) for darkness in range(5)]
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
    bar.set_label(f"{direction} by")
    bar.outline.set_visible(False)  # type: ignore[operator]


def _write_values(axes: "Axes", layers: list[dict], darkness: list[list[Any]], size: float) -> None:
    for y, row in enumerate(layers):
        for x, value in enumerate(row["values"]):
            colour = "white" if darkness[y][x] > 0.6 else "#333333"
            axes.text(x, y, f"{value:.3g}", ha="center", va="center", fontsize=size, color=colour)


def _label(row: Mapping[str, Any]) -> str:
    """The layer's name from its end, and how many others share its channels."""
    name, more = row["layer"], f" + {len(row['with'])}" if row["with"] else ""
    return ("…" + name[-LONGEST_LABEL:] if len(name) > LONGEST_LABEL + 1 else name) + more
