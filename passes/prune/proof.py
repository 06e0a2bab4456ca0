"""Shrunk equals masked: the proof that a cut graph computes what the whole one does without the removed channels.

Both graphs run side by side in float64. In the whole graph the operands of contractions (conv, linear, matmul,
attention) are zeroed at the removed indices, and an op that mixes a whole dim (layer norm, mean over channels) is
evaluated on the survivors by the cut graph's own node. Every value of the cut graph must then be the surviving part
of the whole graph's value, in shape and in numbers. Weights are noised first: zeros, ones and equal channels would
hide a wrong map. The proof cannot see channels that were kept for no reason; tests hold floors for that.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import fx
from torch.fx.node import map_aggregate

from ...ir.errors import VerifyError
from ...ir.graph import Graph
from ...ir.ops import describe, is_op, tensors
from ...ir.shapes import size
from .index.constraints import COPIES
from .index.index_graph import IndexGraph
from .index.relation import Dims
from .survivors import Survivors, thin

TOLERANCE = 1e-9
NOISE = 0.1  # of a weight's root mean square
# What leaves numbers as they are on their way to a table.
_MOVES = ("view", "reshape", "expand", "unsqueeze", "squeeze", "slice", "select", "transpose", "permute", "flatten")
_LOW_PRECISION = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Call:
    """A node as it was before the cut: the cut edits arguments, never identities."""

    node: fx.Node
    target: Any
    args: tuple
    kwargs: dict

    @property
    def inputs(self) -> list[fx.Node]:
        found: list[fx.Node] = []
        fx.map_arg((self.args, self.kwargs), found.append)
        return found


@dataclass(frozen=True)
class Snapshot:
    """A graph before a cut: its calls in order, and its weights by name (shared, not copied)."""

    calls: tuple[Call, ...]
    weights: dict[str, torch.Tensor]

    @staticmethod
    def of(graph: Graph) -> "Snapshot":
        return Snapshot(tuple(map(_call, graph.nodes)), graph.weights)


def prove(whole: Snapshot, index: IndexGraph, alive: np.ndarray, seed: int = 0) -> float:
    """Compare the graph that `index` describes, now cut, with what it was before.

    alive   for every atom whether it survived
    seed    of the random inputs and of the noise

    Returns the largest error of any value, relative to that value's largest magnitude. Raises VerifyError naming the
    first node that differs by more than 1e-9, has another shape or does not run.
    """
    with torch.no_grad():
        return _Proof(whole, index, alive, seed).run()


class _Proof:
    def __init__(self, whole: Snapshot, index: IndexGraph, alive: np.ndarray, seed: int):
        self.whole, self.index, self.alive, self.seed = whole, index, alive, seed
        self.values: dict[fx.Node, Any] = {}  # of the whole graph, with zeroed operands
        self.cut_values: dict[fx.Node, Any] = {}
        self.survivors = Survivors.of(index, alive)
        self.worst = 0.0

    def run(self) -> float:
        cut_calls = [_call(node) for node in self.index.graph.nodes]
        drop_whole, drop_cut = _last_uses(self.whole.calls), _last_uses(cut_calls)
        remaining = iter(cut_calls)
        in_cut = {call.node for call in cut_calls}
        for call in self.whole.calls:
            self.values[call.node] = self._run_whole(call)
            while call.node in in_cut:
                twin = next(remaining)
                self.cut_values[twin.node] = self._run_cut(twin)
                if twin.node is call.node:
                    self._compare(call.node)
                    _forget(self.cut_values, drop_cut[twin.node])
                    break
            _forget(self.values, drop_whole[call.node])
        return self.worst

    def _run_whole(self, call: Call) -> Any:
        node = call.node
        if node.op == "placeholder":
            return self._input(node)
        if node.op == "get_attr":
            return self._noised(node, self.whole.weights.get(call.target))
        if node.op == "output":
            return fx.map_arg(call.args[0], self.values.__getitem__)
        if any(self._is_cut(dim) for dim in self.index.mixed.get(node, ())):
            return self._run_on_survivors(node)
        masked: dict[fx.Node, Any] = {}
        for operand, dim in self.index.contracted.get(node, ()):
            masked[operand] = self._zeroed(masked.get(operand, self.values[operand]), dim, self.index[operand][dim])
        return _evaluate(call, lambda n: masked[n] if n in masked else self.values[n])

    def _zeroed(self, value: torch.Tensor, position: int, dim: np.ndarray) -> torch.Tensor:
        shape = [-1 if d == position else 1 for d in range(value.ndim)]
        return value * torch.from_numpy(self.alive[dim]).to(value.dtype).reshape(shape)

    def _run_on_survivors(self, node: fx.Node) -> Any:
        """The cut graph's node on the surviving parts, spread over a value of the full extents.

        A parameter that has the extents of the mixed dims is read where those survive: its own map is on trial here.
        """
        mixed = self.index.mixed[node]
        main = node.all_input_nodes[0]
        self._check_places(node, main)

        def survivors(n: fx.Node) -> Any:
            if n not in self.values:
                return self.cut_values[n]
            (dims,) = self.index.values[n]
            is_parameter = n is not main and [len(d) for d in dims] == [len(d) for d in mixed]
            return thin(self.values[n], mixed if is_parameter else dims, self.alive)

        small = self._evaluate_cut(_call(node), survivors)
        if isinstance(small, torch.Tensor):
            return self._spread(small, self.index[node])
        return [self._spread(part, dims) for part, dims in zip(small, self.index.values[node], strict=True)]

    def _check_places(self, node: fx.Node, main: fx.Node) -> None:
        """An op that mixes leaves each index where it was: results, and operands of one shape, keep what `main` keeps.

        The result is put where the rule says that survivors are, so that the comparison of values cannot see it.
        """
        dims = self.index[main]
        passing = [dim for dim in dims if not any(dim is other for other in self.index.mixed[node])]
        operands = [self.index[n] for n in node.all_input_nodes[1:] if len(self.index.values.get(n, ())) == 1]
        for other in (*self.index.values[node], *(o for o in operands if len(o) == len(dims))):
            expected = dims if len(other) == len(dims) else passing
            for mine, its in zip(expected, other, strict=False):
                if len(mine) == len(its) and not np.array_equal(self.alive[mine], self.alive[its]):
                    what = "it would keep other indices of its result or of another operand than of its input"
                    raise VerifyError(describe(node), what, "its op rule is wrong", "keep the layer with 'keep'")

    def _spread(self, small: torch.Tensor, dims: Dims) -> torch.Tensor:
        """The surviving part of a value in its place among zeros."""
        full = small.new_zeros([len(dim) for dim in dims])
        full[np.ix_(*(np.flatnonzero(self.alive[dim]) for dim in dims))] = small
        return full

    def _run_cut(self, call: Call) -> Any:
        node = call.node
        if node.op == "placeholder":
            return self._thin(self.values[node], self.index.values[node])
        if node.op == "get_attr":
            return self._noised_cut(node)
        if node.op == "output":
            return fx.map_arg(call.args[0], self.cut_values.__getitem__)
        return self._evaluate_cut(call, self.cut_values.__getitem__)

    def _evaluate_cut(self, call: Call, value_of: Callable[[fx.Node], Any]) -> Any:
        """Run a node of the cut graph. Raises VerifyError where the shapes that are left do not fit."""
        try:
            return _evaluate(call, value_of)
        except (RuntimeError, ValueError, IndexError) as error:
            what = f"it does not run after the cut: {str(error).splitlines()[0]}"
            raise VerifyError(
                describe(call.node), what, "its op rule is wrong", "keep the layer with 'keep'"
            ) from error

    def _input(self, node: fx.Node) -> torch.Tensor:
        shape = [len(dim) for dim in self.index[node]]
        dtype = node.meta["val"].dtype
        if not dtype.is_floating_point:
            return torch.randint(_choices(node), shape, generator=self._generator(node.name)).to(dtype)
        return torch.randn(shape, generator=self._generator(node.name), dtype=torch.float64)

    def _noised(self, node: fx.Node, weight: Any) -> Any:
        if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
            return weight
        return weight.double() + self._noise(weight)

    def _noised_cut(self, node: fx.Node) -> Any:
        """The weight that the cut really left, with the surviving part of the noise of the whole one."""
        weight = self.index.graph.weight(node)
        if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
            return weight
        noise = self.survivors.take(str(node.target), self._noise(self.whole.weights[str(node.target)]))
        if noise.shape != weight.shape:
            what = f"weight '{node.target}' was cut to {list(weight.shape)}"
            raise VerifyError(describe(node), what, f"{list(noise.shape)} of its indices survive")
        return weight.double() + noise

    def _noise(self, weight: torch.Tensor) -> torch.Tensor:
        """Equal for tied names. A tensor without a negative entry, such as a variance, keeps its sign."""
        name = next(name for name, other in self.whole.weights.items() if other is weight)
        size = float(weight.double().square().mean().sqrt()) if weight.numel() else 0.0
        if not np.isfinite(size):  # an attention mask
            return torch.zeros(weight.shape, dtype=torch.float64)
        noise = torch.randn(weight.shape, generator=self._generator(name), dtype=torch.float64) * NOISE * (size or 1.0)
        return noise.abs() if weight.numel() and weight.min() >= 0 else noise

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(crc32(name.encode()) + self.seed)

    def _is_cut(self, dim: np.ndarray) -> bool:
        return not self.alive[dim].all()

    def _thin(self, value: Any, dims: list[Dims]) -> Any:
        """The surviving part of a value with one or several tensors."""
        if isinstance(value, torch.Tensor):
            return thin(value, dims[0], self.alive)
        return [thin(v, d, self.alive) for v, d in zip(value, dims, strict=True)]

    def _compare(self, node: fx.Node) -> None:
        if node not in self.index.values:
            return
        if node.op == "get_attr":
            expected = [self.survivors.take(str(node.target), self.values[node])]
        else:
            expected = tensors(self._thin(self.values[node], self.index.values[node]))
        for want, got in zip(expected, tensors(self.cut_values[node]), strict=True):
            if want.shape != got.shape:
                what = f"it yields {list(got.shape)} after the cut"
                raise VerifyError(describe(node), what, f"the surviving channels make {list(want.shape)}")
            error = _relative_error(got, want)
            if not error <= TOLERANCE:
                what = f"it differs by {error:.1e} from the whole graph without the removed channels"
                raise VerifyError(describe(node), what, f"at most {TOLERANCE:g} in float64", "its op rule is wrong")
            self.worst = max(self.worst, error)


def _choices(numbers: fx.Node) -> int:
    """From how many values an integer input may be drawn: the rows of the tables that it is looked up in."""
    extents, seen = [], [numbers]
    for node in seen:  # grows while it is walked
        for user in node.users:
            if is_op(user, "embedding"):
                extents.append(size(user.args[0].meta["val"].shape[0]))  # type: ignore[union-attr]
            elif isinstance(user.meta.get("val"), torch.Tensor) and is_op(user, *COPIES, *_MOVES) and user not in seen:
                seen.append(user)
    return min(extents, default=2)


def _call(node: fx.Node) -> Call:
    return Call(node, node.target, node.args, dict(node.kwargs))


def _evaluate(call: Call, value_of: Callable[[fx.Node], Any]) -> Any:
    """Run one call in float64, whatever precision the graph names."""
    args, kwargs = fx.map_arg((call.args, call.kwargs), value_of)
    args, kwargs = map_aggregate((args, kwargs), lambda v: torch.float64 if v in _LOW_PRECISION else v)
    if is_op(call.node, "fake_quantize_per_channel_affine"):  # its kernel takes no float64 scale
        args = (args[0], args[1].float(), *args[2:])
    result = call.target(*args, **kwargs)
    if isinstance(result, torch.Tensor):
        return result.double() if result.dtype in _LOW_PRECISION else result
    return result


def _relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest difference over the largest magnitude; equal infinities and NaNs agree."""
    if got.numel() == 0:
        return 0.0
    if not want.is_floating_point():
        return 0.0 if torch.equal(got, want) else float("inf")
    difference, magnitude = (got - want).abs(), want.abs().max()
    if not (magnitude.isfinite() and difference.max().isfinite()):
        agree = (got == want) | (got.isnan() & want.isnan())
        difference = torch.where(agree, 0.0, difference)
        magnitude = torch.where(want.isfinite(), want, 0.0).abs().max()
    return float(difference.max() / (magnitude if magnitude > 0 else 1.0))


def _last_uses(calls: Iterable[Call]) -> Mapping[fx.Node, list[fx.Node]]:
    """call -> the values that nobody reads after it."""
    last = {}
    for call in calls:
        last[call.node] = call.node
        last.update(dict.fromkeys(call.inputs, call.node))
    done: dict[fx.Node, list[fx.Node]] = {node: [] for node in last}
    for value, reader in last.items():
        done[reader].append(value)
    return done


def _forget(values: dict[fx.Node, Any], names: Iterable[fx.Node]) -> None:
    for name in names:
        values.pop(name, None)
