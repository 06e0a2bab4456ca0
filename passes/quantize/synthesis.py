"""Images without data: those whose features have the statistics that batch norms remember."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx

from ...ir.errors import UsageError
from ...ir.graph import Graph
from ...ir.ops import arguments, is_op
from ..forward import bind_inputs
from .placement import ACTIVATION_QUANTIZER, WEIGHT_QUANTIZER

_RATE = 0.1


def synthesise(
    graph: Graph, samples: int, iterations: int, seed: int, where: str, progress: Callable[[Iterable, str], Iterable]
) -> torch.Tensor:
    """Inputs [samples, ...] for a graph with batch norms, by gradient descent from normal noise.

    The loss is the squared distance of each channel's mean and deviation, before each batch norm, from the ones that
    it has seen in training, averaged over channels and added up over batch norms; and of the images' own from 0 and 1,
    which models are trained on as a rule.
    Source: Cai et al., ZeroQ: a novel zero shot quantization framework, CVPR 2020, arXiv:2001.00281.

    Raises UsageError for a graph without batch norms, and one that does not take exactly one float32 tensor whose
    first dim counts samples and whose other dims are known.
    """
    if not graph.calls("batch_norm"):
        raise UsageError(where, "the model has no batch norm whose statistics data could follow", "pass data=loader")
    extents = _extents(graph, where)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(samples, *extents, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([images], lr=_RATE)
    for _ in progress(range(iterations), f"{where}, images"):
        with torch.enable_grad():
            interpreter = _Distances(graph)
            interpreter.run(initial_env=bind_inputs(graph, (images,)))
            loss = interpreter.total + _distance(images, torch.zeros(()), torch.ones(()))
            (images.grad,) = torch.autograd.grad(loss, images)
        optimizer.step()
    return images.detach()


class _Distances(fx.Interpreter):
    """Runs a graph in eval form and adds up how far features are from what batch norms remember."""

    def __init__(self, graph: Graph):
        super().__init__(graph.module)
        self.total = torch.zeros(())

    def run_node(self, n: fx.Node) -> Any:
        if is_op(n, "batch_norm"):
            call = arguments(n)
            features, mean, variance = (self.env[node] for node in (call.input, call.running_mean, call.running_var))
            self.total = self.total + _distance(features, mean, (variance + call.eps).sqrt(), call.eps)
        if is_op(n, ACTIVATION_QUANTIZER, WEIGHT_QUANTIZER):
            return self.env[arguments(n).self]  # which may have no scale yet
        return super().run_node(n)


def _distance(
    features: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor, epsilon: float = 0.0
) -> torch.Tensor:
    """Of the statistics of each channel, dim 1, from those given."""
    dims = [dim for dim in range(features.ndim) if dim != 1]
    found = (features.var(dims) + epsilon).sqrt()
    return (features.mean(dims) - mean).square().mean() + (found - deviation).square().mean()


def _extents(graph: Graph, where: str) -> list[int]:
    """Of one sample."""
    specs = graph.inputs
    if len(specs) == 1 and specs[0].dtype == torch.float32 and len(specs[0].shape) > 1:
        batch, *extents = specs[0].shape
        if batch == "b" and all(isinstance(extent, int) for extent in extents):
            return [int(extent) for extent in extents]
    what = f"data cannot be synthesised for inputs {', '.join(map(str, specs))}"
    raise UsageError(where, what, "expected one f32 tensor with a symbolic batch and known extents", "pass data=loader")
