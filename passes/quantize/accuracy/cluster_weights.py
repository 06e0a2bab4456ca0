"""cluster-weights: each weight tensor takes only a few values, those of a codebook that k-means finds."""

import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy  # which loads its parts when they are first used
import torch

from ....ir import rewrite
from ....ir.errors import UsageError
from ....ir.graph import Graph
from ....ir.ops import WEIGHTED_PRODUCTS, arguments
from ...base import Context, Pass, Result, Skip
from ...selectors import select


@dataclass(frozen=True)
class ClusterWeights(Pass):
    """Replace every weight of a product by the nearest value of its tensor's codebook.

    before:  %y = conv2d(%x, w)     w holds any values
    after:   %y = conv2d(%x, w')    w' holds `clusters` values or fewer; zeros stay zeros
    skips:   a weight with no more values than that; a computed weight

    Such a file compresses to log2(clusters) bits a weight. Computation stays in float. Codebooks start evenly between
    the smallest and the largest weight, which keeps the large ones.

    Source: Han, Mao and Dally, Deep compression, ICLR 2016, arXiv:1510.00149, section 3 (linear initialisation); what
    it does is what TensorFlow's model optimization toolkit calls weight clustering.

    Raises UsageError for an option out of range and a pattern in `only` that matches no weight.
    """

    name: ClassVar[str] = "cluster-weights"
    refuses: ClassVar[frozenset[str]] = frozenset({"fake-quant"})  # scales are of the weights before

    clusters: int = 16
    """Values per weight tensor, 2 to 256."""
    rounds: int = 20
    """Rounds of k-means."""
    only: tuple[str, ...] = ()
    """Only these layers: names or patterns of weights, layers or blocks. All where none is given."""

    def __post_init__(self) -> None:
        if not 2 <= self.clusters <= 256:
            raise UsageError(self.name, f"'clusters' is {self.clusters}", "expected 2 to 256")
        if self.rounds < 1:
            raise UsageError(self.name, f"'rounds' is {self.rounds}", "expected 1 or more")

    def run(self, graph: Graph, ctx: Context) -> Result:
        stored, skipped = self._weights(graph)
        new: dict[str, torch.Tensor] = {}
        facts: list[dict[str, Any]] = []
        for name in ctx.progress(stored, self.name):
            weight = graph.weight(name).detach()
            values = np.unique(weight.double().cpu().numpy())
            if len(values) <= self.clusters:
                skipped.append(Skip(f"weight '{name}'", f"it holds {len(values)} values, no more than 'clusters'"))
            elif ctx.fuel.take():
                new[name], book = _clustered(weight, self.clusters, self.rounds)
                error = float((new[name].double() - weight.double()).square().sum() / weight.double().square().sum())
                bits = weight.numel() * math.ceil(math.log2(self.clusters)) + 32 * len(book)
                facts.append({"weight": name, "values": len(book), "error": error, "bytes": -(-bits // 8)})
        rewrite.set_weights(graph, new)
        rewrite.finish(graph)
        return Result(len(new), tuple(skipped), {"weights": facts})

    def _weights(self, graph: Graph) -> tuple[list[str], list[Skip]]:
        """The stored weights of products by name, each tensor once; and the products whose weight is computed."""
        found: dict[int, str] = {}
        skipped = []
        for product in graph.calls(*WEIGHTED_PRODUCTS):
            weight = arguments(product).weight
            if weight.op == "get_attr":
                found.setdefault(id(graph.weight(weight)), str(weight.target))
            else:
                skipped.append(Skip.at(product, "its weight is computed"))
        names = list(found.values())
        return select(names, self.only, self.name, "only") if self.only else names, skipped


def _clustered(weight: torch.Tensor, clusters: int, rounds: int) -> tuple[torch.Tensor, np.ndarray]:
    """The weight in the values of its codebook, and the codebook. Zeros, where any are, have a value of their own."""
    flat = weight.double().cpu().numpy().reshape(-1)
    zero = flat == 0
    rest, count = flat[~zero], clusters - bool(zero.any())
    start = np.linspace(rest.min(), rest.max(), count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of clusters that no weight is in: they keep their place
        book, _ = scipy.cluster.vq.kmeans2(rest[:, None], start[:, None], iter=rounds, minit="matrix")
    book = book.astype(np.float32).astype(np.float64)  # the values that the graph will hold
    codes, _ = scipy.cluster.vq.vq(rest[:, None], book)
    result = np.zeros_like(flat)
    result[~zero] = book[codes, 0]
    return torch.from_numpy(result).to(weight).reshape(weight.shape), np.unique(result)
