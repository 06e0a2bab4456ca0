"""Where the time of a compiled model goes, layer by layer, and how near kernels come to what the machine can do."""

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.table import Column

from .report import WIDTH
from .tables import name, number, prose, spaced, table


@dataclass(frozen=True)
class LayerTime:
    """One kernel call.

    seconds  the least of some runs; macs, bytes  of the plain algorithm, each operand once; bound  seconds that the
    multiply-accumulates need at the measured peak, or the bytes at the measured copying speed, whichever is longer
    """

    node: str
    kernel: str
    seconds: float
    macs: int
    bytes: int
    bound: float

    @property
    def efficiency(self) -> float:
        """bound / seconds: 1 is all that the machine can do; Winograd kernels, which multiply less, may pass it."""
        return self.bound / self.seconds if self.seconds else 0.0

    @property
    def family(self) -> str:
        """The first words of the kernel's description: `int8 pointwise`."""
        return self.kernel.partition(",")[0]


@dataclass(frozen=True)
class Profile:
    """Every kernel call of one inference, in order; `peaks`: multiply-accumulates per second by arithmetic."""

    layers: tuple[LayerTime, ...]
    peaks: dict[str, float]

    @property
    def seconds(self) -> float:
        return sum(layer.seconds for layer in self.layers)

    def families(self) -> list[LayerTime]:
        """The layers of each family as one, slowest first."""
        groups: dict[str, list[LayerTime]] = {}
        for layer in self.layers:
            groups.setdefault(layer.family, []).append(layer)
        return sorted(map(_sum, groups.values()), key=lambda entry: -entry.seconds)

    def __str__(self) -> str:
        console = Console(width=WIDTH, color_system=None, markup=False, highlight=False)
        with console.capture() as captured:
            console.print(self)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def __rich__(self) -> RenderableType:
        peaks = ", ".join(f"{arithmetic} {rate / 1e9:.0f} GMAC/s" for arithmetic, rate in self.peaks.items())
        return spaced(
            f"one inference {1e3 * self.seconds:.2f} ms in kernels; measured peak of one core: {peaks}",
            table("", (prose("family"), number("calls"), *_figure_columns()), self._family_rows()),
            table("", (name("layer"), prose("kernel"), *_figure_columns()), self._layer_rows()),
        )

    def _family_rows(self) -> Iterable[tuple[str, ...]]:
        for entry in self.families():
            count = sum(layer.family == entry.family for layer in self.layers)
            yield entry.family, str(count), *self._figures(entry)

    def _layer_rows(self) -> Iterable[tuple[str, ...]]:
        for layer in self.layers:
            yield layer.node, layer.kernel, *self._figures(layer)

    def _figures(self, layer: LayerTime) -> tuple[str, str, str, str]:
        rate = f"{layer.macs / layer.seconds / 1e9:.0f}" if layer.macs and layer.seconds else ""
        share, reached = 100 * layer.seconds / self.seconds, 100 * layer.efficiency
        return f"{1e3 * layer.seconds:.3f}", f"{share:.1f} %", rate, f"{reached:.0f} %" if layer.bound else ""


def _figure_columns() -> list[Column]:
    return [number(heading) for heading in ("ms", "share", "GMAC/s", "of the bound")]


def _sum(layers: list[LayerTime]) -> LayerTime:
    totals = (sum(getattr(layer, field) for layer in layers) for field in ("seconds", "macs", "bytes", "bound"))
    return LayerTime("", layers[0].family, *totals)
