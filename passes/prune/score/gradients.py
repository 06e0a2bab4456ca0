"""Derivatives of the loss by every parameter: the gradient, its square, the curvature along the weight."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ....ir.errors import UsageError, first_line
from ....ir.graph import Graph
from ...base import Context
from ...forward import forward
from ...loss import loss_of

if TYPE_CHECKING:
    from .activations import Activations

# Random probes for the curvature in each batch. The estimate's variance falls with probes times batches.
PROBES = 16

Tensors = dict[str, torch.Tensor]


class Gradients:
    """Sums over batches, in float64. Leaves stand in for the parameters, so that the graph never sees a gradient."""

    def __init__(self, graph: Graph, ctx: Context, wanted: frozenset[str]):
        self.graph, self.loss, self.wanted = graph, ctx.loss, wanted
        self.generator = torch.Generator().manual_seed(ctx.seed)
        parameters = {n: p for n, p in graph.parameters.items() if p.is_floating_point()}
        self.leaves = {name: parameter.detach().requires_grad_() for name, parameter in parameters.items()}
        self.by_id = {id(parameters[name]): leaf for name, leaf in self.leaves.items()}
        self.sums: dict[str, Tensors] = {
            quantity: {
                n: torch.zeros_like(leaf, dtype=torch.float64, requires_grad=False) for n, leaf in self.leaves.items()
            }
            for quantity in sorted(wanted)
        }

    def means(self, batches: int) -> dict[str, Tensors]:
        return {quantity: {n: total / batches for n, total in sums.items()} for quantity, sums in self.sums.items()}

    def observe(
        self, inputs: tuple[torch.Tensor, ...], labels: Any, where: str, activations: "Activations | None" = None
    ) -> None:
        """Add one batch, and show its values to `activations`.

        Raises UsageError for a loss that fails, is no number, reaches no parameter or is not finite, and for a
        gradient that is not, naming the parameter.
        """
        twice = "curvature" in self.wanted
        # The fused attention kernels have no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH) if twice else nullcontext():
            outputs = forward(self.graph, inputs, self.by_id, activations and activations.watch)
            if activations is not None:
                activations.check(where)
            loss = loss_of(self.loss, outputs, labels, where)
            if not loss.requires_grad:
                raise UsageError(where, "the loss depends on no parameter", "expected one that gradients flow through")
            found = torch.autograd.grad(loss, list(self.leaves.values()), create_graph=twice, allow_unused=True)
            gradients = {name: g for name, g in zip(self.leaves, found, strict=True) if g is not None}
            _check_finite(gradients, "gradient", where)
            self._add("gradient", gradients)
            self._add("squared-gradient", {name: g.detach().double().square() for name, g in gradients.items()})
            if twice:
                self._add("curvature", self._curvature(gradients, where))

    def _add(self, quantity: str, values: Tensors) -> None:
        if quantity in self.sums:
            for name, value in values.items():
                self.sums[quantity][name] += value.detach()

    def _curvature(self, gradients: Tensors, where: str) -> Tensors:
        """Hutchinson's estimate of the diagonal of W H W, where W holds the weights on its diagonal: w^2 h.

        It is the mean of z * W H W z over vectors z of random signs. Its variance is the squares of the rest of each
        row. With the weights inside, a row means the same change of the loss everywhere; in H alone small weights of
        one layer, which have large derivatives, would drown large weights of another.
        """
        curved = {name: g for name, g in gradients.items() if g.requires_grad}  # not where the loss is linear
        total = {name: torch.zeros_like(g, dtype=torch.float64) for name, g in curved.items()}
        weights = [self.leaves[name] for name in curved]
        for _ in range(PROBES if curved else 0):
            probes = [self._signs(weight) * weight.detach() for weight in weights]
            try:
                products = torch.autograd.grad(
                    list(curved.values()), weights, probes, retain_graph=True, allow_unused=True
                )
            except RuntimeError as error:
                what = f"the loss cannot be differentiated twice: {first_line(error)}"
                raise UsageError(where, what, "choose another importance, such as fisher") from error
            found = {n: (z, p) for n, z, p in zip(curved, probes, products, strict=True) if p is not None}
            _check_finite({name: product for name, (_, product) in found.items()}, "second derivative", where)
            for name, (probe, product) in found.items():
                total[name] += probe.double() * product.double()
        return {name: value / PROBES for name, value in total.items()}

    def _signs(self, like: torch.Tensor) -> torch.Tensor:
        """-1 or 1 each, the same on every device."""
        return (2 * torch.randint(2, like.shape, generator=self.generator) - 1).to(like)


def _check_finite(values: Tensors, what: str, where: str) -> None:
    for name, value in values.items():
        if not bool(torch.isfinite(value).all()):
            raise UsageError(
                where, f"the {what} of weight '{name}' holds NaN or infinity", "check the loss and the data"
            )
