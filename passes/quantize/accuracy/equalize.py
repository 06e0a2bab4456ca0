"""equalize: make the weights of neighbouring layers span like ranges, channel by channel, at no change of the model."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx

from ....ir import rewrite
from ....ir.errors import UsageError
from ....ir.graph import Graph
from ....ir.ops import arguments
from ...base import Context, Pass, Result, Skip
from ...layers.by_group import along, by_group
from .absorb import absorbed
from .chains import Pair, bounds, find_pairs
from .sameness import Weights, in_float64, outputs, prove

ENOUGH = 1e-3  # rounds end when no factor is further from 1 than this


@dataclass(frozen=True)
class Equalize(Pass):
    """Divide each output channel of a layer and multiply the next layer's input channel by the same factor.

    before:  %y = conv2d(%x, w[64,...], b);  %z = conv2d(relu(%y), v[16,64,...])
    after:   the same calls; channel c of w and b over s[c], channel c of v times s[c]
    skips:   an output with several readers, or none; a call between that does not pass a factor; a weight that is
             shared or computed; a clip at other than zero (relu6) where 'clips' is keep

    With s = sqrt(range of the output channel / range of the input channel) both get the geometric mean of their ranges;
    rounds go on until chains of three and more (conv, depthwise conv, conv) have settled. What a quantizer with one
    scale for all input channels, or a coarse one, loses in the small channels is lost no more. Every run is proved: in
    float64, before weights are rounded to their dtype, the model computes the same to 1e-9.

    Source: Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019,
    arXiv:1906.04721, sections 4.1 and 4.2.
    """

    name: ClassVar[str] = "equalize"
    refuses: ClassVar[frozenset[str]] = frozenset({"fake-quant"})  # scales are of the weights before

    rounds: int = 20
    """At most so many passes over the model."""
    clips: str = "keep"
    """keep: nothing moves across a relu6 and the like. per-channel: their bounds are divided too and become one per
    channel, which is exact; that clip has no integer form then."""
    absorb: bool = False
    """Afterwards move into the next layer's bias what a relu never clips in all the data (needs data)."""

    def __post_init__(self) -> None:
        if self.clips not in ("keep", "per-channel"):
            raise UsageError(self.name, f"'clips' is '{self.clips}'", "expected keep or per-channel")
        if self.rounds < 1:
            raise UsageError(self.name, f"'rounds' is {self.rounds}", "expected 1 or more")

    def needed(self) -> frozenset[str]:
        return frozenset({"data"}) if self.absorb else frozenset()

    def run(self, graph: Graph, ctx: Context) -> Result:
        was_training = graph.module.training
        graph.eval()
        try:
            return self._run(graph, ctx)
        finally:
            graph.train(was_training)

    def _run(self, graph: Graph, ctx: Context) -> Result:
        pairs, skipped = find_pairs(graph)
        if self.clips == "keep":
            clipped = [pair for pair in pairs if pair.clips]
            skipped += [Skip.at(p.first, f"'{p.clips[0][0].name}' clips at other than zero") for p in clipped]
            pairs = [pair for pair in pairs if not pair.clips]
        pairs = [pair for pair in pairs if ctx.fuel.take()]
        work = _Work(graph, in_float64(graph))
        expected = outputs(graph, work.weights)
        factors = work.equalize(pairs, self.rounds)
        changed = [pair for pair, factor in zip(pairs, factors, strict=True) if bool((factor - 1).abs().max() > ENOUGH)]
        if changed:
            work.write(dict(zip(pairs, factors, strict=True)))
            prove(graph, work.weights, expected, self.name)
        absorbing = absorbed(graph, pairs, ctx, self.name) if self.absorb else []
        rewrite.finish(graph)
        facts = [_facts(pair, factor) for pair, factor in zip(pairs, factors, strict=True)]
        return Result(len(changed) + len(absorbing), tuple(skipped), {"pairs": facts, "absorbed": absorbing})


@dataclass
class _Work:
    """The graph's weights in float64, changed there first."""

    graph: Graph
    weights: Weights
    touched: set[str] = field(default_factory=set)

    def equalize(self, pairs: list[Pair], rounds: int) -> list[torch.Tensor]:
        """The factor per channel of each pair, all rounds together."""
        total = [torch.ones(self._output_ranges(pair).shape, dtype=torch.float64) for pair in pairs]
        for _ in range(rounds):
            moved = 0.0
            for number, pair in enumerate(pairs):
                factor = self._factor(pair)
                self._apply(pair, factor)
                total[number] *= factor
                moved = max(moved, float((factor - 1).abs().max()))
            if moved <= ENOUGH:
                break
        return total

    def write(self, factors: dict[Pair, torch.Tensor]) -> None:
        """Put the weights into the graph, and bounds per channel where a clip needs them."""
        rewrite.set_weights(
            self.graph, {name: self.weights[name].to(self.graph.weight(name)) for name in sorted(self.touched)}
        )
        for pair, factor in factors.items():
            for clip, channel in pair.clips:
                self._set_bounds(clip, channel, factor)

    def _factor(self, pair: Pair) -> torch.Tensor:
        """[channels]; 1 where a channel has no weights on either side."""
        first, second = self._output_ranges(pair), self._input_ranges(pair)
        sound = (first > 0) & (second > 0)
        return torch.where(sound, first / torch.where(sound, second, 1.0), 1.0).sqrt()

    def _apply(self, pair: Pair, factor: torch.Tensor) -> None:
        name, grouped, outputs, _ = self._grouped(pair.first)
        self._set(name, grouped / along(factor, grouped, outputs))
        bias = arguments(pair.first).bias
        if bias is not None:
            self._set(str(bias.target), self.weights[str(bias.target)] / factor)
        name, grouped, _, inputs = self._grouped(pair.second)
        self._set(name, grouped * along(factor.repeat_interleave(pair.repeat), grouped, inputs))

    def _output_ranges(self, pair: Pair) -> torch.Tensor:
        """[channels]: the largest weight of each output channel of the first product."""
        _, grouped, _, inputs = self._grouped(pair.first)
        return grouped.abs().amax((inputs, 3)).reshape(-1)

    def _input_ranges(self, pair: Pair) -> torch.Tensor:
        """[channels]: the largest weight on each of these channels in the second product."""
        _, grouped, outputs, _ = self._grouped(pair.second)
        return grouped.abs().amax((outputs, 3)).reshape(-1, pair.repeat).amax(1)

    def _grouped(self, product: fx.Node) -> tuple[str, torch.Tensor, int, int]:
        name = str(arguments(product).weight.target)
        return name, *by_group(product, self.weights[name])

    def _set(self, name: str, value: torch.Tensor) -> None:
        self.weights[name] = value.reshape(self.weights[name].shape)
        self.touched.add(name)

    def _set_bounds(self, clip: fx.Node, channel: int, factor: torch.Tensor) -> None:
        """clip(x, low, high) / s = clip(x / s, low / s, high / s) for every s > 0."""
        source, nodes = arguments(clip).self, []
        behind = source.meta["val"].ndim - 1 - channel
        for label, bound in zip(("low", "high"), bounds(clip), strict=True):
            if bound is None:
                nodes.append(None)
                continue
            exact = (bound / factor).reshape(-1, *[1] * behind)
            stored = exact.to(source.meta["val"].dtype)
            node = rewrite.add_weight(self.graph, f"{clip.name}_{label}", stored, before=clip)
            self.weights[str(node.target)] = exact
            nodes.append(node)
        new = rewrite.insert(self.graph, torch.ops.aten.clamp.Tensor, (source, *nodes), before=clip, like=clip)
        rewrite.replace(self.graph, clip, new)


def _facts(pair: Pair, factor: torch.Tensor) -> dict[str, Any]:
    names = [str(arguments(product).weight.target) for product in (pair.first, pair.second)]
    return {"first": names[0], "second": names[1], "factors": [float(factor.min()), float(factor.max())]}
