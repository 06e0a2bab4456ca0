"""Shapes: what a graph takes and gives, and shape inference on fake tensors with a symbolic batch."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from . import integers, meta_kernels  # noqa: F401  register what shape inference needs
from .errors import UsageError, VerifyError, first_line
from .inferred import Call
from .ops import describe

# A symbol stands for its example value while rules look at a graph; distinct values keep symbols apart, because
# the shape environment gives dims of equal example value one symbol. After the batch come multiples of 32, as models
# that halve their maps again and again want them.
EXAMPLE_EXTENTS = (2, 64, 96, 160, 192, 224)
# Symbols that do not stand for a batch, with their example values, by the shape environment that they belong to.
_FIXED_EXAMPLES: WeakKeyDictionary[ShapeEnv, tuple[tuple[Any, int], ...]] = WeakKeyDictionary()


# Where an input's node, or one that an output reads, says what its integers stand for: (scale, zero point).
AFFINE = "affine"


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: its name, torch dtype and shape. A symbolic extent is its name ("b" is the batch).

    scale, zero_point   of integers that stand for real values, scale * (q - zero_point); None of all others
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]
    scale: float | None = None
    zero_point: int | None = None

    def __str__(self) -> str:
        return f"{self.name} : {short_dtype(self.dtype)}[{','.join(map(str, self.shape))}]"

    def with_extents(self, extents: dict[str, int]) -> tuple[int, ...]:
        """The shape with its symbols replaced, e.g. by {"b": 1}."""
        return tuple(extents[s] if isinstance(s, str) else s for s in self.shape)


def short_dtype(dtype: torch.dtype) -> str:
    """f32, bf16, i8, u8, b1: the dtype names of the text form."""
    if dtype == torch.bool:
        return "b1"
    name = str(dtype).removeprefix("torch.")
    for long, short in (("bfloat", "bf"), ("float", "f"), ("uint", "u"), ("int", "i"), ("complex", "c")):
        if name.startswith(long):
            return short + name.removeprefix(long)
    return name


def size(extent: int | torch.SymInt) -> int:
    """An extent as a number; a symbolic one as its example value."""
    return int(extent.node.hint) if isinstance(extent, torch.SymInt) else int(extent)


def shape(node: fx.Node) -> list[int]:
    """The recorded shape of a single-tensor node, symbolic extents as their example values."""
    return [size(extent) for extent in node.meta["val"].shape]


def symbol_names(graph: fx.Graph) -> dict[Any, str]:
    """sympy symbol -> the name people read: `b` for the first input's first dim, then s0, s1, ..."""
    names: dict[Any, str] = {}
    for node in graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            continue
        for dim, extent in enumerate(value.shape):
            if isinstance(extent, torch.SymInt):
                for symbol in sorted(extent.node.expr.free_symbols, key=str):
                    is_batch = dim == 0 and "b" not in names.values()
                    names.setdefault(symbol, "b" if is_batch else f"s{len(names)}")
    return names


def extent_text(extent: int | torch.SymInt, names: dict[Any, str]) -> int | str:
    """An extent as people read it: 64, `b` or `2*b`."""
    if not isinstance(extent, torch.SymInt):
        return int(extent)
    expression = extent.node.expr
    if expression.is_number:
        return int(expression)
    return str(expression.subs({symbol: _symbol(name) for symbol, name in names.items()})).replace(" ", "")


def concrete(extent: int | torch.SymInt, batch: int = 1) -> int:
    """An extent as a number for one batch size: a symbol becomes `batch`, or its example value (`fix_examples`)."""
    if not isinstance(extent, torch.SymInt):
        return int(extent)
    return _substituted(extent.node.expr, batch, _FIXED_EXAMPLES.get(extent.node.shape_env, ()))


@lru_cache(maxsize=4096)
def _substituted(expression: Any, batch: int, fixed: tuple[tuple[Any, int], ...]) -> int:
    values = {**dict.fromkeys(expression.free_symbols, batch), **dict(fixed)}
    return int(expression.xreplace({symbol: _integer(value) for symbol, value in values.items()}))


def fix_examples(graph: fx.Graph) -> None:
    """From now on symbols of inner dims (an image's height) count at their example value, whatever the batch size."""
    inputs = [node.meta["val"] for node in input_nodes(graph)]
    batches = {s for value in inputs for extent in value.shape[:1] for s in _symbols(extent)}
    fixed: dict[Any, int] = {}
    for extent in (extent for value in inputs for extent in value.shape[1:]):
        fixed |= {symbol: size(extent) for symbol in _symbols(extent) - batches}
        if isinstance(extent, torch.SymInt):
            _FIXED_EXAMPLES[extent.node.shape_env] = tuple(fixed.items())


def _symbols(extent: int | torch.SymInt) -> set[Any]:
    return set(extent.node.expr.free_symbols) if isinstance(extent, torch.SymInt) else set()


def tensor_spec(name: str, value: torch.Tensor, names: dict[Any, str]) -> TensorSpec:
    return TensorSpec(name, value.dtype, tuple(extent_text(s, names) for s in value.shape))


def _edge_spec(node: fx.Node, names: dict[Any, str]) -> TensorSpec:
    scale, zero_point = node.meta.get(AFFINE, (None, None))
    return replace(tensor_spec(node.name, node.meta["val"], names), scale=scale, zero_point=zero_point)


def is_constant_input(node: fx.Node) -> bool:
    """True for an input that capture fixed to a plain value: a number, a flag, None."""
    return node.op == "placeholder" and "val" in node.meta and not isinstance(node.meta["val"], torch.Tensor)


def input_nodes(graph: fx.Graph) -> list[fx.Node]:
    """The placeholders that take tensors."""
    return [n for n in graph.find_nodes(op="placeholder") if not is_constant_input(n)]


def input_specs(graph: fx.Graph) -> list[TensorSpec]:
    names = symbol_names(graph)
    return [_edge_spec(n, names) for n in input_nodes(graph)]


def output_specs(graph: fx.Graph) -> list[TensorSpec]:
    names = symbol_names(graph)
    (output,) = graph.find_nodes(op="output")
    return [_edge_spec(n, names) for n in output.all_input_nodes]


def has_default_examples(graph: fx.Graph) -> bool:
    """True where the inputs' symbols stand for themselves and have the example values that `propagate` would choose.

    Then what torch.export recorded serves as well as fake inputs of our own, and its caches are warm.
    """
    extents = [extent for node in input_nodes(graph) for extent in node.meta["val"].shape]
    examples = {extent.node.expr: size(extent) for extent in extents if isinstance(extent, torch.SymInt)}
    return all(symbol.is_symbol for symbol in examples) and tuple(examples.values()) == EXAMPLE_EXTENTS[: len(examples)]


def propagate(module: fx.GraphModule, specs: list[TensorSpec] | None = None) -> None:
    """Re-infer every node's meta["val"] on fake tensors.

    specs: the inputs' shapes. Not given, the fake inputs that the placeholders hold are kept, and with them torch's
    caches, which makes it five times as fast.
    Raises VerifyError naming the node whose op rejects its inputs.
    """
    if specs is None and (kept := input_nodes(module.graph)):
        mode = kept[0].meta["val"].fake_mode
        inputs = iter([node.meta["val"] for node in kept])
    else:
        mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=False)
        inputs = iter(_fake_inputs(mode, specs or []))
    weights: dict[int, torch.Tensor] = {}
    with mode:
        for node in module.graph.nodes:
            if node.op == "placeholder":
                if not is_constant_input(node):
                    node.meta["val"] = next(inputs)
            elif node.op == "get_attr":
                node.meta["val"] = _fake_weight(mode, module, node.target, weights)
            elif node.op == "call_function":
                node.meta["val"] = infer(node)
            node.meta.pop("tensor_meta", None)  # it would be stale, and nothing here reads it


def infer(node: fx.Node, values: dict[fx.Node, Any] | None = None) -> Any:
    """The value that a call yields on fake values of its arguments: those in `values`, else the recorded ones."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"] if values is None else values[n])
    # Ops that make tensors (fake-quant inside, arange altogether) must make fake ones.
    mode = detect_fake_mode((args, kwargs)) or detect_fake_mode([n.meta.get("val") for n in input_nodes(node.graph)])
    call = Call.of(mode, node.target, args, kwargs)
    if call is None:
        return _run(node, mode, args, kwargs)
    found = call.result()
    return call.keep(_run(node, mode, args, kwargs)) if found is None else found


def _run(node: fx.Node, mode: FakeTensorMode | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        # The Python dispatcher keeps symbols where C++ composite ops (adaptive pooling) would fix them to the example.
        with torch.no_grad(), enable_python_dispatcher(), mode or nullcontext():
            return node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception as error:
        raise VerifyError(describe(node), f"its inputs do not fit: {first_line(error)}") from error


def fake_like(node: fx.Node, tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` as a fake tensor of the mode that `node`'s value belongs to."""
    mode = node.meta["val"].fake_mode
    if tensor.layout != torch.strided or not tensor.ndim:  # what has more to it than its type
        return mode.from_tensor(tensor, static_shapes=True)
    options: dict[str, Any] = {"dtype": tensor.dtype, "requires_grad": tensor.requires_grad}
    fake = FakeTensor(mode, torch.empty_strided(tensor.shape, tensor.stride(), device="meta", **options), tensor.device)
    fake._is_param = isinstance(tensor, torch.nn.Parameter)  # type: ignore[attr-defined]  as torch marks its own
    return fake


def memory_order(value: torch.Tensor) -> tuple[int, ...]:
    """The dims of a tensor from the slowest to the fastest in memory."""
    return tuple(sorted(range(value.ndim), key=lambda d: size(value.stride(d)), reverse=True))


def resized(value: torch.Tensor, extents: Sequence[int | torch.SymInt], order: Sequence[int]) -> torch.Tensor:
    """A fake tensor like `value` with other extents and its dims in this order in memory.

    It is made directly, and its storage has no bytes: an op that runs in the mode takes ten times as long, the most of
    it to work out the symbolic size of a storage that nobody reads.
    """
    strides: list[int | torch.SymInt] = [1] * len(extents)
    for slower, faster in reversed([*pairwise(order)]):
        strides[slower] = strides[faster] * extents[faster]
    meta = torch.empty(0, dtype=value.dtype, device="meta").as_strided(tuple(extents), strides)
    return FakeTensor(value.fake_mode, meta, value.device)  # type: ignore[attr-defined]


def check_inputs(where: str, specs: list[TensorSpec], args: tuple[Any, ...], least: int = 1) -> dict[str, int]:
    """Check a call's tensors against the inputs, symbolic extents being `least` or more. Returns those extents.

    Raises UsageError naming the input, what it is and what it should be.
    """
    if len(args) != len(specs):
        wanted = ", ".join(map(str, specs))
        raise UsageError(where, f"{len(args)} inputs were given", f"the model takes {len(specs)}: {wanted}")
    extents: dict[str, int] = {}
    for spec, value in zip(specs, args, strict=True):
        if not isinstance(value, torch.Tensor):
            raise UsageError(where, f"input '{spec.name}' is a {type(value).__name__}", f"expected a tensor {spec}")
        fits = value.dtype == spec.dtype and len(value.shape) == len(spec.shape)
        fits = fits and all(_extent_fits(e, s, extents, least) for e, s in zip(value.shape, spec.shape, strict=False))
        if not fits:
            actual = f"{short_dtype(value.dtype)}[{','.join(map(str, value.shape))}]"
            raise UsageError(where, f"input '{spec.name}' is {actual}", f"expected {spec}")
    return extents


def _extent_fits(actual: int, wanted: int | str, extents: dict[str, int], least: int) -> bool:
    if isinstance(wanted, int):
        return actual == wanted
    return actual >= least and (not wanted.isidentifier() or extents.setdefault(wanted, actual) == actual)


def _fake_inputs(mode: FakeTensorMode, specs: list[TensorSpec]) -> list[torch.Tensor]:
    symbols = list(dict.fromkeys(s for spec in specs for s in spec.shape if isinstance(s, str)))
    if len(symbols) > len(EXAMPLE_EXTENTS):
        raise UsageError("shapes", f"{len(symbols)} symbolic extents", f"at most {len(EXAMPLE_EXTENTS)} are supported")
    examples: dict[str, int] = dict(zip(symbols, EXAMPLE_EXTENTS, strict=False))
    fakes = []
    for spec in specs:
        dims = [DimDynamic.DYNAMIC if isinstance(s, str) else DimDynamic.STATIC for s in spec.shape]
        meta = torch.empty(spec.with_extents(examples), dtype=spec.dtype, device="meta")
        context = StatelessSymbolicContext(dynamic_sizes=dims)
        fake = mode.from_tensor(meta, symbolic_context=context)
        with mode:
            fakes.append(torch.empty_like(fake, device="cpu"))
    return fakes


def _fake_weight(mode: FakeTensorMode, module: fx.GraphModule, name: str, known: dict[int, torch.Tensor]) -> Any:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    if not isinstance(value, torch.Tensor):
        return value
    if id(value) not in known:
        known[id(value)] = mode.from_tensor(value, static_shapes=True)
    return known[id(value)]


def _symbol(name: str) -> Any:
    import sympy

    return sympy.Symbol(name, positive=True, integer=True)


def _integer(value: int) -> Any:
    import sympy

    return sympy.Integer(value)
