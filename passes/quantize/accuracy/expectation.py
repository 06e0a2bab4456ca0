"""Mean and variance of every value of a float graph, from the statistics of its batch norms, without data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from ....ir.graph import Graph
from ....ir.ops import WEIGHTED_PRODUCTS, arguments, is_getitem, is_op, op_name
from ....ir.shapes import concrete, input_nodes
from ...forward import bind_inputs
from ..rules import CLIPS, ELEMENTWISE, only_moves
from .batch_statistics import Normal, of_batch_norm
from .chains import bounds
from .normal import clipped, through
from .reference import channel_dim

# Linear in what they read, but neighbours are correlated: the variance of a mean is not known.
_LINEAR = {
    "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "mean", "upsample_bilinear2d",
}  # fmt: skip
_MAXIMA = {"max_pool1d", "max_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d", "amax", "amin"}
_FILLED = {"pad", "constant_pad_nd"}


@dataclass(frozen=True, eq=False)
class Expected:
    """Of a value, for one sample: mean and variance of each element, float64, NaN where not known, and why it is not.

    Elements count as normally distributed where a function that is not linear reads them.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    why: str = ""


def expectations(graph: Graph, products: Mapping[str, Normal | str]) -> dict[fx.Node, Expected]:
    """What is known of each float value of `graph`. `products` is known of outputs, by the weight's name.

    A batch norm yields its bias and scale, so does a product that one is folded into; products, means, sums, moves of
    values, clips (in closed form) and other functions of one value carry it on. The terms of a sum count as
    uncorrelated and the sum as normal, which holds the better the more terms there are. The mean of the model's inputs
    is not known, nor is that of a maximum.
    """
    interpreter = _Expectation(graph, products)
    leaves = {node: _input(node) for node in input_nodes(graph.module.graph)}
    with torch.no_grad():
        interpreter.run(initial_env=bind_inputs(graph, list(leaves.values())))
    return leaves | interpreter.found


class _Expectation(fx.Interpreter):
    def __init__(self, graph: Graph, products: Mapping[str, Normal | str]):
        super().__init__(graph.module)
        self.owner, self.products = graph, products
        self.found: dict[fx.Node, Expected] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "output":
            return None
        if n.op == "get_attr":
            return _double(self.owner.weight(n))
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        read = _all(args) + _all(kwargs)
        if n.op != "call_function" or not read:
            return super().run_node(n)
        value = self._value(n, args, kwargs, read)
        if isinstance(value, Expected):
            self.found[n] = value
        return value

    def _value(self, n: fx.Node, args: Any, kwargs: Any, read: list[Expected]) -> Any:
        why = self._told(n) or next((one.why for one in read if one.why), "")
        rule = _RULES.get(op_name(n))
        call = _Call(n, args, kwargs, read)
        if (own := self._own(n)) is not None:
            mean = call.on("mean")
            return _spread(own, mean, 1 if is_op(n, "batch_norm") else channel_dim(n, mean.ndim))
        if is_getitem(n):
            return args[0][args[1]]
        if rule is not None:
            mean, variance = rule(call)
            if not why and bool(variance.isnan().any()):
                why = _untold(n)
            return Expected(mean, variance, why)
        moves = only_moves(n) and op_name(n) not in _MAXIMA and not _fills(n)
        mean = call.on("mean")
        variance = call.on("variance") if moves else None
        return _wrapped(mean, variance, why if moves else why or _untold(n))

    def _told(self, n: fx.Node) -> str:
        """Why the batch norm that was folded into a product says nothing any more; empty if that is not so."""
        weight = arguments(n).weight if is_op(n, *WEIGHTED_PRODUCTS) else None
        if weight is None or weight.op != "get_attr":
            return ""
        found = self.products.get(str(weight.target))
        return f"of '{weight.target}' {found}" if isinstance(found, str) else ""

    def _own(self, n: fx.Node) -> Normal | None:
        """What batch norms say of this call by itself."""
        if is_op(n, "batch_norm"):
            return of_batch_norm(self.owner, n)
        if not is_op(n, *WEIGHTED_PRODUCTS):
            return None
        weight = arguments(n).weight
        found = self.products.get(str(weight.target)) if weight.op == "get_attr" else None
        return found if isinstance(found, Normal) else None


@dataclass(frozen=True)
class _Call:
    node: fx.Node
    args: Any
    kwargs: Any
    read: list[Expected]

    def on(self, what: str) -> Any:
        """The call's own result on the means, or on the variances, of what it reads."""
        both = self.args, self.kwargs
        args, kwargs = (map_aggregate(v, lambda x: getattr(x, what) if isinstance(x, Expected) else x) for v in both)
        return self.node.target(*args, **kwargs)  # type: ignore[operator]


def _product(call: _Call) -> tuple[torch.Tensor, torch.Tensor]:
    """A product without a batch norm, and other linear calls."""
    mean = call.on("mean")
    return mean, torch.full_like(mean, torch.nan)


def _clip(call: _Call) -> tuple[torch.Tensor, torch.Tensor]:
    (read,) = call.read
    low, high = bounds(call.node)
    return clipped(read.mean, read.variance, _bound(call, low, -torch.inf), _bound(call, high, torch.inf))


def _bound(call: _Call, bound: Any, absent: float) -> torch.Tensor:
    if isinstance(bound, fx.Node):  # one for each channel, in the arguments as a tensor
        return call.args[1 + (absent > 0)]
    return torch.tensor(absent if bound is None else float(bound), dtype=torch.float64)


def _function(call: _Call) -> tuple[torch.Tensor, torch.Tensor]:
    (read,) = call.read

    def apply(x: torch.Tensor) -> torch.Tensor:
        args, kwargs = (map_aggregate(v, lambda one: x if one is read else one) for v in (call.args, call.kwargs))
        return call.node.target(*args, **kwargs)  # type: ignore[operator]

    return through(apply, read.mean, read.variance)


def _sum(call: _Call) -> tuple[torch.Tensor, torch.Tensor]:
    mean, alpha = call.on("mean"), float(getattr(arguments(call.node), "alpha", 1) or 1)
    variance = torch.zeros_like(mean)
    for position, operand in enumerate(call.args[:2]):
        if isinstance(operand, Expected):
            variance = variance + operand.variance * (alpha if position else 1.0) ** 2
    same = len(call.read) == 2 and call.read[0] is call.read[1]
    return mean, torch.full_like(mean, torch.nan) if same else variance


def _scaled(call: _Call) -> tuple[torch.Tensor, torch.Tensor]:
    mean = call.on("mean")
    if len(call.read) != 1:  # a gate depends on what it multiplies
        return torch.full_like(mean, torch.nan), torch.full_like(mean, torch.nan)
    factor = next(torch.as_tensor(x) for x in call.args[:2] if not isinstance(x, Expected))
    return mean, call.read[0].variance * factor.double().square()


_RULES: dict[str, Callable[[_Call], tuple[torch.Tensor, torch.Tensor]]] = {
    **dict.fromkeys((*WEIGHTED_PRODUCTS, *_LINEAR), _product),
    **dict.fromkeys(ELEMENTWISE, _function),
    **dict.fromkeys(CLIPS, _clip),
    **dict.fromkeys(("add", "sub"), _sum),
    "mul": _scaled,
}


def _input(node: fx.Node) -> Expected:
    value = node.meta["val"]
    extents = [concrete(extent, 1) for extent in value.shape]
    if not value.dtype.is_floating_point:
        return Expected(torch.zeros(extents, dtype=value.dtype), torch.zeros(()), "the model's input has no statistics")
    unknown = torch.full(extents, torch.nan, dtype=torch.float64)
    return Expected(unknown, unknown, "the model's input has no statistics")


def _spread(normal: Normal, like: torch.Tensor, axis: int) -> Expected:
    extents = [-1 if dim == axis else 1 for dim in range(like.ndim)]
    mean, variance = (x.reshape(extents).expand(like.shape).clone() for x in (normal.mean, normal.variance))
    return Expected(mean, variance)


def _wrapped(mean: Any, variance: Any, why: str) -> Any:
    """Of a call that yields one tensor or several; unknown without a variance."""
    if isinstance(mean, (list, tuple)):
        parts = [None] * len(mean) if variance is None else variance
        return [_wrapped(m, v, why) for m, v in zip(mean, parts, strict=True)]
    if not isinstance(mean, torch.Tensor):
        return mean  # a question about shapes
    if variance is None:
        unknown = torch.full(mean.shape, torch.nan, dtype=torch.float64)
        return Expected(unknown, unknown, why)
    return Expected(mean, variance, why)


def _untold(n: fx.Node) -> str:
    return f"no batch norm tells the spread of '{n.name}' ({op_name(n)})"


def _fills(n: fx.Node) -> bool:
    """True for padding with other than zero."""
    if not is_op(n, *_FILLED):
        return False
    call = arguments(n)
    return call.value not in (None, 0) or getattr(call, "mode", "constant") != "constant"


def _double(value: Any) -> Any:
    return value.detach().double() if isinstance(value, torch.Tensor) and value.dtype.is_floating_point else value


def _all(value: Any) -> list[Expected]:
    found: list[Expected] = []
    map_aggregate(value, lambda x: found.append(x) if isinstance(x, Expected) else None)
    return found
