"""Every way in: nn.Module, fx.GraphModule, ExportedProgram, a .pt2 file or a saved graph become a Graph."""

import inspect
import io
import logging
import os
import traceback
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from . import shapes
from .archive import MAGIC_MEMBER
from .errors import CaptureError, UsageError, VerifyError, first_line
from .functional import inline_regions, remove_assertions, replace_in_place_ops
from .graph import Graph, build_module, named_tensors
from .ops import TORCH_FOLDER, location
from .pt2 import load_exported_program

Source = torch.nn.Module | torch.export.ExportedProgram | Graph | str | os.PathLike


def capture(source: Source, args: tuple[Any, ...] | torch.Tensor | None = None, *, dynamic_batch: bool = True) -> Graph:
    """Bring a model into a Graph, in eval form.

    source         nn.Module (an fx.symbolic_trace result is one), ExportedProgram, a .pt2 file, or a saved graph
    args           example inputs, needed for an nn.Module: one tensor or a tuple
    dynamic_batch  let dim 0 of every input vary where the model allows it

    Weights keep their names, ties and `requires_grad`; the graph shares no tensor with the model.
    Raises CaptureError naming the op and the source line that cannot be captured, UsageError for a wrong call.
    """
    if isinstance(source, Graph):
        return source.copy()
    if isinstance(source, (str, os.PathLike)):
        return _from_file(Path(source))
    if isinstance(source, torch.export.ExportedProgram):
        return from_exported_program(source)
    if not isinstance(source, torch.nn.Module):
        what = f"the model is a {type(source).__name__}"
        raise UsageError("capture", what, "expected an nn.Module, an ExportedProgram, a Graph or a path")
    if args is None:
        raise UsageError("capture", "no example inputs were given", "pass capture(model, (x,))")
    args = (args,) if isinstance(args, torch.Tensor) else tuple(args)
    program = export(source, args, dynamic_batch=dynamic_batch)
    try:
        return from_exported_program(program)
    except CaptureError:
        if not program.range_constraints:
            raise
    return from_exported_program(export(source, args, dynamic_batch=False))  # its batch cannot be kept dynamic


def capture_dynamic(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dims: Mapping[int, Collection[int]]
) -> Graph:
    """`capture` with chosen dynamic dims: position of a tensor among the leaves of (args, kwargs) -> its dims.

    Dims that the module fixes stay fixed, but the batch (dim 0, equal in all tensors) varies or the capture fails. For
    costs and proofs every other dynamic extent stands at its value in the example.
    Raises CaptureError as `capture` does.
    """
    leaves, nesting = pytree.tree_flatten((args, kwargs))
    extents = {leaves[position].shape[0] for position, chosen in dims.items() if 0 in chosen}
    if extents <= {0, 1}:  # torch.export takes an example extent of 0 or 1 for a constant
        leaves = [_of_batch_two(leaf) if 0 in dims.get(i, ()) else leaf for i, leaf in enumerate(leaves)]
    batch = torch.export.Dim("batch") if len(extents) == 1 else torch.export.Dim.AUTO
    hints = [
        {d: torch.export.Dim.AUTO if d else batch for d in sorted(dims[i])} if i in dims else None
        for i, _ in enumerate(leaves)
    ]
    args, kwargs = pytree.tree_unflatten(leaves, nesting)
    hint_args, hint_kwargs = pytree.tree_unflatten(hints, nesting)
    with _eval_form(module):
        try:
            named = inspect.signature(module.forward).bind(*hint_args, **hint_kwargs).arguments
            program = _export(module, args, kwargs=kwargs, dynamic_shapes=dict(named), strict=False)
        except Exception as error:
            raise _capture_error(module, error) from error
    return from_exported_program(program, keep_examples=True)


def export(model: torch.nn.Module, args: tuple[Any, ...], *, dynamic_batch: bool) -> torch.export.ExportedProgram:
    """torch.export in eval form, non-strict first and strict as the second try; the model's own mode is restored."""
    with _eval_form(model):
        if dynamic_batch and (program := _export_with_dynamic_batch(model, args)):
            return program
        try:
            return _export(model, args, strict=False)
        except Exception as first:
            try:
                return _export(model, args, strict=True)
            except Exception:
                raise _capture_error(model, first) from first


@contextmanager
def _eval_form(model: torch.nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def from_exported_program(program: torch.export.ExportedProgram, *, keep_examples: bool = False) -> Graph:
    """A Graph from an exported program, in eval form: guards dropped, regions inlined, in-place ops functional.

    keep_examples   symbolic extents keep the program's example values; dynamic dims but the first count at them

    Raises CaptureError for what a graph cannot hold: module calls, numbers as dynamic inputs, related extents.
    """
    with _quiet():
        raw = program.module()
    assert isinstance(raw, fx.GraphModule)
    for node in raw.graph.nodes:
        if "stack_trace" in node.meta:
            node.meta["source"] = location(node)
    for guard in [n for n in raw.graph.nodes if n.target == "_guards_fn"]:
        raw.graph.erase_node(guard)
    inline_regions(raw)
    remove_assertions(raw.graph)
    replace_in_place_ops(raw.graph)
    for node in reversed(raw.graph.find_nodes(op="get_attr")):
        if not node.users:
            raw.graph.erase_node(node)
    _refuse_foreign_nodes(raw.graph)
    transient = frozenset(dict(raw.named_buffers(remove_duplicate=False)).keys() - program.state_dict.keys())
    graph = Graph(build_module(_own_tensors(raw), raw.graph, transient)).copy()
    graph.module.graph.eliminate_dead_code(is_impure_node=has_effect)
    try:
        kept = keep_examples or shapes.has_default_examples(graph.module.graph)
        shapes.propagate(graph.module, None if kept else graph.inputs)
    except VerifyError as error:
        advice = "conditions between dynamic extents cannot be kept; export with fixed sizes or a dynamic batch only"
        raise CaptureError(f"capture, {error.where}", error.what, advice) from error
    if keep_examples:
        shapes.fix_examples(graph.module.graph)
    return graph.eval()


def has_effect(node: fx.Node) -> bool:
    """Nodes that dead-code elimination must keep: inputs, outputs, and ops that write into their arguments."""
    if node.op in ("placeholder", "output"):
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _from_file(path: Path) -> Graph:
    if not path.exists():
        raise UsageError("capture", f"there is no file '{path}'", "expected a .pt2 file or a saved graph")
    if not zipfile.is_zipfile(path):
        raise UsageError("capture", f"'{path}' is not a zip archive", "expected a .pt2 file or a saved graph")
    with zipfile.ZipFile(path) as archive:
        if MAGIC_MEMBER in archive.namelist():
            return Graph.load(path)
    return from_exported_program(load_exported_program(path))


def _export(model: torch.nn.Module, args: tuple[Any, ...], **options: Any) -> torch.export.ExportedProgram:
    with _quiet():
        return torch.export.export(model, args, **options)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch writes whole graphs to the log and to stderr before it raises; the CaptureError says what matters."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _export_with_dynamic_batch(model: torch.nn.Module, args: tuple[Any, ...]) -> torch.export.ExportedProgram | None:
    """None where the model (or this way of asking) needs a fixed batch."""
    example = doubled(args)
    if example is None:
        return None
    leaves = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor)]
    try:
        # By name, because torch.export takes what `*args` collects for one argument.
        named = dict(inspect.signature(model.forward).bind(*example).arguments)
    except TypeError:
        return None
    shared = [torch.export.Dim("batch")] if len(leaves) > 1 else []  # one batch for all inputs, else one for each
    for batch in [*shared, torch.export.Dim.AUTO]:
        dims = pytree.tree_map_only(torch.Tensor, lambda t, batch=batch: {0: batch}, named)
        dims = pytree.tree_map_only(lambda leaf: not isinstance(leaf, dict), lambda _: None, dims, is_leaf=_is_dims)
        try:
            program = _export(model, example, dynamic_shapes=dims, strict=False)
        except Exception:
            continue  # the static capture that follows gives the better message
        inputs = [n.meta["val"] for n in program.graph.nodes if n.name in program.graph_signature.user_inputs]
        if all(isinstance(v.shape[0], torch.SymInt) for v in inputs if isinstance(v, torch.Tensor)):
            return program
    return None


def doubled(args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The example that is captured with a dynamic batch: torch.export takes an extent of 1 for a constant.

    None where the inputs have no batch, or not the same one.
    """
    extents = {leaf.shape[:1] for leaf in pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor)}
    if len(extents) != 1 or () in extents:
        return None
    return pytree.tree_map_only(torch.Tensor, lambda t: torch.cat([t, t]), args)


def _of_batch_two(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor, tensor]) if len(tensor) else tensor.new_zeros((2, *tensor.shape[1:]))


def _is_dims(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {0}


def _own_tensors(module: fx.GraphModule) -> dict[str, Any]:
    """All tensors by name, and the submodules that control-flow nodes point at."""
    own: dict[str, Any] = dict(named_tensors(module))
    for node in module.graph.find_nodes(op="get_attr"):
        value: Any = module
        for part in node.target.split("."):
            value = getattr(value, part)
        own.setdefault(node.target, value)
    return own


def _refuse_foreign_nodes(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.op == "call_module":
            raise CaptureError(f"capture, {location(node)}", f"'{node.target}' is a module call", "export it whole")
        value = node.meta.get("val")
        if node.op != "placeholder":
            continue
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            raise CaptureError("capture", f"input '{node.name}' is a dynamic number", "export with a fixed one")
        for extent in value.shape if isinstance(value, torch.Tensor) else ():
            if isinstance(extent, torch.SymInt) and not extent.node.expr.is_symbol:
                what = f"input '{node.name}' has the derived extent {extent.node.expr}"
                raise CaptureError("capture", what, "export with extents that do not depend on each other")


def _capture_error(model: torch.nn.Module, error: Exception) -> CaptureError:
    """The user's own source line, from the innermost frame outside torch, and the reason in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    frames = [f for f in frames if f.filename != __file__ and not f.filename.startswith((TORCH_FOLDER, "<"))]
    line = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else type(model).__name__
    code = f"`{frames[-1].line}`" if frames and frames[-1].line else type(model).__name__
    reason = first_line(error)
    return CaptureError(
        f"capture, {line}",
        f"{code} cannot be captured: {type(error).__name__}: {reason.rstrip('.')}",
        "torch.export must be able to trace the model; capture the part before this line, or rewrite the line",
    )
