"""One module of a larger model as a graph: how it is captured, when it may be, how it stands in the module's place."""

import copy
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .capture import capture_dynamic
from .errors import CaptureError, PlanishError
from .graph import Graph, named_tensors
from .recording import Call

SPATIAL_FROM = 2  # images and volumes are [batch, channels, ...]
# A float32 graph runs the same kernels as the module, at most with other in-place forms.
VALUE_TOLERANCE = 1e-5


class Region(torch.nn.Module):
    """A graph in the place of a module. Everything but the computation is asked of the original's copy, the shell.

    Its weights are those of the graph, under the names that they had in the module.
    """

    def __init__(self, graph: Graph, shell: torch.nn.Module):
        super().__init__()
        body = graph.module
        # What the graph's module registers is registered here: one set of weights, under the same names.
        self._parameters, self._buffers, self._modules = body._parameters, body._buffers, body._modules
        self._non_persistent_buffers_set = body._non_persistent_buffers_set
        self.__dict__.update(graph=graph, shell=shell, training=body.training)

    @staticmethod
    def replacing(module: torch.nn.Module, graph: Graph) -> "Region":
        """`graph` for `module`. The shell holds the graph's weights, and none where the graph has none."""
        own = named_tensors(graph.module)
        weights: dict[int, Any] = {id(tensor): own.get(name) for name, tensor in named_tensors(module).items()}
        return Region(graph, copy.deepcopy(module, weights))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = self.graph.bind(args, kwargs, least=0)  # no detections: a batch of none
        return self.graph.module(*args, **kwargs)

    def train(self, mode: bool = True) -> "Region":
        self.graph.train(mode)
        self.training = mode
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "shell" not in self.__dict__:
                raise
            return getattr(self.__dict__["shell"], name)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Region":
        twin = memo[id(self)] = Region.replacing(self.shell, self.graph.copy())
        return twin

    def extra_repr(self) -> str:
        return f"{type(self.shell).__name__} as a graph of {len(list(self.graph.nodes))} nodes"


def capture_region(module: torch.nn.Module, calls: list[Call], differing: dict[int, set[int]]) -> Graph:
    """The module as a graph that takes all of these calls.

    Tried in turn: batch and spatial extents dynamic; the batch and what differs between the calls; all fixed.
    Raises CaptureError with the reason of the last attempt.
    """
    first = calls[0]
    attempts = [_dynamic_dims(first, differing, spatial=True), _dynamic_dims(first, differing, spatial=False)]
    attempts += [{}] if not any(differing.values()) else []
    refusal: PlanishError | None = None
    for dims in attempts:
        try:
            graph = capture_dynamic(module, first.args, first.kwargs, dims)
            for call in calls:
                graph.bind(call.args, call.kwargs, least=0)
            return graph
        except PlanishError as error:
            refusal = error
    assert refusal is not None
    raise refusal


def _dynamic_dims(call: Call, differing: dict[int, set[int]], *, spatial: bool) -> dict[int, set[int]]:
    """Position of a tensor among the leaves -> the dims that should vary."""
    dims: dict[int, set[int]] = {}
    for position, leaf in enumerate(call.leaves):
        if isinstance(leaf, torch.Tensor) and leaf.ndim:
            inner = range(SPATIAL_FROM, leaf.ndim) if spatial and leaf.ndim > SPATIAL_FROM + 1 else ()
            dims[position] = {0, *inner} | differing.get(position, set())
    return dims


def check_inputs_are_tensors(calls: list[Call]) -> None:
    """Numbers would be fixed to those of the example, and objects cannot be traced."""
    for leaf in (leaf for call in calls for leaf in call.leaves):
        if not (leaf is None or isinstance(leaf, (torch.Tensor, bool))):
            what = f"it is called with a {type(leaf).__name__}"
            raise CaptureError("capture", what, "a graph takes tensors, and would fix everything else to the example's")


def check_same_values(module: torch.nn.Module, graph: Graph, calls: list[Call]) -> None:
    """The graph must give what the module gives on every call of the run, in eval form.

    In training form it must give results of the same kind: a module that then returns a loss is more than its graph.
    """
    modes = {inner: inner.training for inner in module.modules()}
    module.eval()
    try:
        for call in calls:
            wanted, given = _result(module, call), _result(graph.module, call, graph)
            if pytree.tree_structure(given) != pytree.tree_structure(wanted):
                raise CaptureError("capture", "its output is nested in another way than the graph's")
            for got, want in zip(pytree.tree_leaves(given), pytree.tree_leaves(wanted), strict=True):
                if not _close(got, want):
                    raise CaptureError("capture", "the graph gives other values than the module")
        _check_training_form(module, calls[-1], wanted)
    finally:
        for inner, training in modes.items():
            inner.training = training


def _check_training_form(module: torch.nn.Module, call: Call, in_eval_form: Any) -> None:
    try:
        in_training = _result(copy.deepcopy(module).train(), call)
    except Exception:
        return  # a batch norm over one value, say: nothing is known about it
    kinds = [
        [tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else type(leaf) for leaf in pytree.tree_leaves(result)]
        for result in (in_eval_form, in_training)
    ]
    if kinds[0] != kinds[1]:
        raise CaptureError("capture", "it returns something else in training form")


def _result(module: torch.nn.Module, call: Call, graph: Graph | None = None) -> Any:
    """What the module gives on a copy of the arguments (modules may write into them), without gradients."""
    args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (call.args, call.kwargs))
    if graph is not None:
        args, kwargs = graph.bind(args, kwargs, least=0)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return module(*args, **kwargs)


def _close(got: Any, want: Any) -> bool:
    if not isinstance(want, torch.Tensor):
        return got == want
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    if want.numel() == 0 or not want.is_floating_point():
        return bool(torch.equal(got, want))
    scale = float(want.abs().max())
    return bool(torch.allclose(got, want, rtol=VALUE_TOLERANCE, atol=VALUE_TOLERANCE * scale, equal_nan=True))
