"""sparsify: exact zeros in the weights of products, anywhere or n of every m."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ..ir import rewrite
from ..ir.errors import UsageError
from ..ir.graph import Graph
from .base import Context, Pass, Result, Skip
from .layers.ends import ends
from .pipeline_text import did_you_mean
from .selectors import select
from .sparse_choice import IMPORTANCE, lowest, lowest_of_blocks
from .sparsity import SPARSE, Factor, check_zeros, factors, masks

__all__ = ["Sparsify", "check_zeros", "masks"]

_PATTERN = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True)
class Sparsify(Pass):
    """Set the least important weights of convs, linear and recurrent layers and matrix products to zero.

    before:  %y = linear(%x, w[2,4]),  w = [[ 3, -1, 2, 4], [1, 5, -6, 2]]
    after:   %y = linear(%x, w[2,4]),  w = [[ 3,  0, 0, 4], [0, 5, -6, 0]]   (pattern "2:4")
    skips:   a layer that is listed in `keep`, or is not in `only`, or is the first or last one where those stay
             a matrix that something else than a product reads, such as an embedding table
             a pattern does not divide the inputs that one output of the layer sums over, or which they are is unclear
             the share of so few weights rounds to none

    Biases and norms stay as they are. Zeros that are there count: a second run changes nothing. The graph gets the
    property "sparse"; from then on every pass is checked to leave the zeros at zero, and `finetune` trains the others.
    """

    name: ClassVar[str] = "sparsify"
    provides: ClassVar[frozenset[str]] = frozenset({SPARSE})
    drops: ClassVar[frozenset[str]] = frozenset({"calibrated"})  # ranges were observed on the dense model
    refuses: ClassVar[frozenset[str]] = frozenset({"fake-quant", "integers"})  # scales belong to the dense weights

    sparsity: float | None = None
    """The share of zeros, in (0, 1): 0.9 leaves one weight in ten. `scope=layer`: in every layer, rounded to whole
    weights; `scope=global`: in all layers together. The largest weight of a layer always stays."""
    pattern: str | None = None
    """Instead of `sparsity`: `"2:4"` leaves at most 2 of every 4 weights, `"4:8"` 4 of every 8, in blocks along the
    inputs that one output sums over, as sparse tensor cores read them (Mishra et al., "Accelerating Sparse Deep
    Neural Networks", 2021)."""
    importance: str = "magnitude"
    """magnitude; lamp, which makes layers comparable and is meant for `scope=global`; random."""
    scope: str = "layer"
    """layer: every layer alone. global: all layers are ranked together, so that some lose more than others."""
    keep: tuple[str, ...] = ()
    """Layers that stay as they are: names or patterns of weights, layers or blocks (`stem`, `*.conv1`)."""
    only: tuple[str, ...] = ()
    """If given, nothing else becomes sparse."""
    keep_first: bool = False
    """The layers that no other layer stands before stay as they are."""
    keep_last: bool = False
    """The layers that no other layer stands behind stay as they are."""
    seed: int = 0
    """Of `importance=random`."""

    def __post_init__(self) -> None:
        if (self.sparsity is None) == (self.pattern is None):
            what = "neither 'sparsity' nor 'pattern' is given" if self.sparsity is None else "both are given"
            raise UsageError(self.name, what, "expected exactly one of 'sparsity' and 'pattern'")
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            what = f"sparsity is {self.sparsity:g}"
            raise UsageError(self.name, what, "expected the share of zeros, above 0 and below 1")
        if self.pattern is not None:
            self._block()
        if self.importance not in IMPORTANCE:
            hint = did_you_mean(self.importance, IMPORTANCE) or f"it has: {', '.join(IMPORTANCE)}"
            raise UsageError(self.name, f"unknown importance '{self.importance}'", hint)
        if self.scope not in ("layer", "global"):
            raise UsageError(self.name, f"unknown scope '{self.scope}'", "expected layer or global")
        if self.pattern is not None and self.scope == "global":
            raise UsageError(self.name, "scope is global", "a pattern holds in every block of every layer")

    def run(self, graph: Graph, ctx: Context) -> Result:
        """Set weights to zero. Raises UsageError for a selector without a match, a layer that `keep` and `only` both
        name, and a weight that is not finite."""
        candidates, skips = self._candidates(graph)
        magnitudes = {name: _magnitude(graph, name, self.name) for name in candidates}
        chosen, more = (self._by_share if self.pattern is None else self._by_pattern)(candidates, magnitudes)
        changed, layers = 0, []
        for name, gone in chosen.items():
            before = int((magnitudes[name] == 0).sum())
            if (gone & (magnitudes[name] != 0)).any() and ctx.fuel.take():
                _set_to_zero(graph, name, gone)
                changed += 1
            after = int((graph.weight(name) == 0).sum())
            layers.append({"layer": name.removesuffix(".weight"), "weights": gone.size, "zeros": [before, after]})
        rewrite.finish(graph)
        is_sparse = SPARSE in graph.properties or any(layer["zeros"][1] for layer in layers)
        withheld = frozenset() if is_sparse else self.provides
        return Result(changed, tuple(skips + more), _totals(graph, layers), withheld)

    def _candidates(self, graph: Graph) -> tuple[dict[str, Factor], list[Skip]]:
        """The factors that may become sparse, and why others may not."""
        found, others = factors(graph)
        names = [*found, *others]
        kept = select(names, self.keep, self.name, "keep")
        wanted = select(names, self.only, self.name, "only") if self.only else names
        if both := set(kept) & set(wanted if self.only else ()):
            what = f"'{min(both)}' is named by 'keep' and by 'only'"
            raise UsageError(self.name, what, "take it out of one of them")
        reasons = dict.fromkeys(_ends(graph, found, first=True), "it is a first layer") if self.keep_first else {}
        if self.keep_last:
            reasons |= dict.fromkeys(_ends(graph, found, first=False), "it is a last layer")
        reasons |= dict.fromkeys(set(names) - set(wanted), "it is not in 'only'")
        reasons |= dict.fromkeys(kept, "it is listed in 'keep'")
        reasons |= others
        skips = [Skip(name.removesuffix(".weight"), reasons[name]) for name in names if name in reasons]
        return {name: factor for name, factor in found.items() if name not in reasons}, skips

    def _scores(self, magnitudes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        scores = {name: IMPORTANCE[self.importance](m.ravel(), rng) for name, m in magnitudes.items()}
        return {name: np.where(magnitudes[name].ravel() == 0, -np.inf, score) for name, score in scores.items()}

    def _by_share(
        self, candidates: dict[str, Factor], magnitudes: dict[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], list[Skip]]:
        """By layer which weights go; one weight of every layer stays."""
        assert self.sparsity is not None
        scores = self._scores(magnitudes)
        for score in scores.values():
            score[len(score) - 1 - np.argmax(score[::-1])] = np.inf
        if self.scope == "global" and scores:
            total = sum(score.size for score in scores.values())
            gone = np.split(
                lowest(np.concatenate([*scores.values()]), min(round(self.sparsity * total), total - len(scores))),
                np.cumsum([score.size for score in scores.values()])[:-1],
            )
        else:
            gone = [lowest(s, min(round(self.sparsity * s.size), s.size - 1)) for s in scores.values()]
        chosen = {name: mask.reshape(magnitudes[name].shape) for name, mask in zip(scores, gone, strict=True)}
        few = [name for name, mask in chosen.items() if not mask.any() and self.scope == "layer"]
        skips = [self._too_few(name, magnitudes[name].size) for name in few]
        return {name: mask for name, mask in chosen.items() if name not in few}, skips

    def _too_few(self, name: str, size: int) -> Skip:
        return Skip(name.removesuffix(".weight"), f"{self.sparsity:g} of its {size} weights is less than one that goes")

    def _by_pattern(
        self, candidates: dict[str, Factor], magnitudes: dict[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], list[Skip]]:
        kept, block = self._block()
        scores, chosen, skips = self._scores(magnitudes), {}, []
        for name, factor in candidates.items():
            layer = name.removesuffix(".weight")
            if factor.summed is None:
                skips.append(Skip(layer, "which of its dims its products sum over is not known"))
            elif factor.summed.extent % block:
                what = f"each output sums over {factor.summed.extent} inputs, which blocks of {block} do not divide"
                skips.append(Skip(layer, what))
            else:
                score = scores[name].reshape(magnitudes[name].shape)
                chosen[name] = lowest_of_blocks(score, factor.summed.dim, block, block - kept)
        return chosen, skips

    def _block(self) -> tuple[int, int]:
        """(weights that stay, weights of a block). Raises UsageError for a pattern that is none."""
        assert self.pattern is not None
        match = _PATTERN.fullmatch(self.pattern)
        kept, block = map(int, match.groups()) if match else (0, 0)
        if not 0 < kept < block:
            what = f"pattern is '{self.pattern}'"
            raise UsageError(self.name, what, "expected how many of a block stay, such as '2:4' or '4:8'")
        return kept, block


def _magnitude(graph: Graph, name: str, where: str) -> np.ndarray:
    weight = graph.weight(name).detach()
    magnitude = weight.abs().to(torch.promote_types(weight.dtype, torch.float32)).cpu().numpy()
    if not np.isfinite(magnitude).all():
        count = int((~np.isfinite(magnitude)).sum())
        what = f"weight '{name}' holds {count} values that are NaN or infinite"
        raise UsageError(where, what, "expected finite weights", "check how the model was trained or loaded")
    return magnitude


def _set_to_zero(graph: Graph, name: str, gone: np.ndarray) -> None:
    weight = graph.weight(name).detach()
    rewrite.set_weight(graph, name, weight.masked_fill(torch.from_numpy(gone).to(weight.device), 0))


def _ends(graph: Graph, found: dict[str, Factor], first: bool) -> list[str]:
    """The weights of the layers that no other layer stands before (behind, if not `first`).

    An embedding is a layer, too: the first linear layers of a language model are not its first layers.
    """
    products = {node for factor in found.values() for node in factor.products}
    at_end = ends(graph, products | set(graph.calls("embedding")), first)
    return [name for name, factor in found.items() if at_end & set(factor.products)]


def _totals(graph: Graph, layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Per layer and in total: weights, zeros before and after; and the share of zeros among all parameters."""
    parameters = graph.parameters.values()
    size, zeros = sum(p.numel() for p in parameters), sum(int((p == 0).sum()) for p in parameters)
    return {
        "weights": sum(layer["weights"] for layer in layers),
        "zeros": [sum(layer["zeros"][end] for layer in layers) for end in (0, 1)],
        "share_of_all_parameters": zeros / size if size else 0.0,
        "layers": layers,
    }
