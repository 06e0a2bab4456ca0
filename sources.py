"""What stands for a model on the command line: `file.py:function`, `package.module:function`, or a file."""

import difflib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .ir.capture import Source, capture
from .ir.errors import PlanishError, UsageError, first_line
from .ir.graph import Graph

MODEL_FORMS = "expected file.py:function, package.module:function, a .pt2 or .onnx file, or a saved graph"
_DTYPES = {
    "f16": torch.float16, "f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "b1": torch.bool,
    "i8": torch.int8, "u8": torch.uint8, "i16": torch.int16, "i32": torch.int32, "i64": torch.int64,
}  # fmt: skip
_SHAPE = re.compile(r"\s*(?:(?P<dtype>[a-z]+\d+)\s*)?\[(?P<extents>[\d\s,]*)\]\s*(?:,|$)")
_BARE_SHAPE = re.compile(r"\s*\d+(\s*[,x]\s*\d+)*\s*")


@dataclass(frozen=True)
class NamedModel:
    """A model, the example inputs that came with it, and a short name for files made of it."""

    name: str
    model: Source
    args: Any = None


@dataclass(frozen=True)
class Function:
    """`file.py:function` or `package.module:function`, imported."""

    spec: str
    file: str
    call: Callable[[], Any]

    def __call__(self) -> Any:
        """Call it without arguments. Raises UsageError with its own message and line where it raises."""
        try:
            return self.call()
        except (Exception, SystemExit) as error:
            raise raised_inside(self.spec, self.file, error) from error

    @property
    def name(self) -> str:
        return self.spec.rpartition(":")[2]


def load_model(spec: str, args: str | None = None) -> NamedModel:
    """The model that `spec` names; `args` are shapes (see `example_inputs`), which replace the function's own.

    Raises UsageError for everything that can be wrong with it: no file, no function, a function that raises or
    returns no model, a model without example inputs.
    """
    given = example_inputs(args) if args else None
    if is_function(spec):
        found = from_function(load_function(spec, MODEL_FORMS))
        return NamedModel(found.name, found.model, found.args if given is None else given)
    path = Path(spec)
    if not path.exists():
        raise UsageError("model", f"there is no file '{spec}'", MODEL_FORMS)
    if path.suffix == ".py":
        raise UsageError("model", f"'{spec}' names no function", f"expected {spec}:function", functions_of(path))
    return NamedModel(path.stem, read_graph(path), given)


def read_graph(path: str | os.PathLike) -> Graph:
    """The Graph in a .pt2 file, a saved graph or an ONNX file. Raises UsageError for anything else."""
    if Path(path).suffix == ".onnx":
        from .backends.onnx import import_onnx  # onnxruntime takes its time to load

        return import_onnx(path)
    return capture(path)


def from_function(function: Function) -> NamedModel:
    """Call a function that returns a model, or (model, example inputs)."""
    result = function()
    pair = isinstance(result, tuple) and len(result) == 2
    model, args = result if pair else (result, None)
    if not isinstance(model, (torch.nn.Module, torch.export.ExportedProgram, Graph)):
        kind = f"a tuple of {len(result)}" if isinstance(result, tuple) and not pair else f"a {type(model).__name__}"
        raise UsageError(function.spec, f"it returned {kind}", "expected an nn.Module, or (nn.Module, example inputs)")
    if args is not None and not all(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(args)):
        kinds = sorted({type(leaf).__name__ for leaf in pytree.tree_leaves(args)})
        raise UsageError(function.spec, f"its example inputs hold {', '.join(kinds)}", "expected tensors")
    return NamedModel(function.name, model, args)


def graph_of(found: NamedModel) -> Graph:
    """Capture. Raises UsageError for a module without example inputs, CaptureError naming op and source line."""
    return capture(checked_model(found), found.args)


def checked_model(found: NamedModel) -> Source:
    """The model. Raises UsageError for a module without example inputs."""
    if isinstance(found.model, torch.nn.Module) and found.args is None:
        advice = "return (model, inputs) from the function, or give --args 1,3,224,224"
        raise UsageError(found.name, "the model comes without example inputs", advice)
    return found.model


def example_inputs(text: str) -> tuple[torch.Tensor, ...]:
    """Random tensors from shapes: `1,3,224,224`, or `f32[1,3,224,224], i64[1,16]` for several inputs.

    Floats are normal, integers zero. Raises UsageError for anything else.
    """
    if _BARE_SHAPE.fullmatch(text):
        text = f"[{text.replace('x', ',')}]"
    found, at = [], 0
    while at < len(text) and (match := _SHAPE.match(text, at)):
        found.append(_random(match["dtype"] or "f32", match["extents"], len(found)))
        at = match.end()
    if not found or at < len(text):
        advice = "expected shapes: 1,3,224,224 or f32[1,3,224,224], i64[1,16]"
        raise UsageError("--args", f"cannot read '{text}'", advice)
    return tuple(found)


def _random(dtype: str, extents: str, seed: int) -> torch.Tensor:
    if dtype not in _DTYPES:
        raise UsageError("--args", f"unknown dtype '{dtype}'", f"known are {', '.join(_DTYPES)}")
    shape = [int(extent) for extent in extents.split(",") if extent.strip()]
    if not _DTYPES[dtype].is_floating_point:
        return torch.zeros(shape, dtype=_DTYPES[dtype])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(_DTYPES[dtype])


# ---------------------------------------------------------------- functions in files and packages


def is_function(spec: str) -> bool:
    return ":" in spec and not Path(spec).exists()


def load_function(spec: str, forms: str) -> Function:
    """Import what stands before the last colon and take the function after it. Raises UsageError; `forms` is advice."""
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise UsageError(spec, "it names no function", forms)
    module = _from_file(Path(place)) if place.endswith(".py") else _from_package(place, forms)
    function = getattr(module, name, None)
    if function is None:
        near = difflib.get_close_matches(name, callables(module), n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"it has: {', '.join(callables(module)) or 'no functions'}"
        raise UsageError(spec, f"'{place}' has no '{name}'", hint)
    if not callable(function) or isinstance(function, torch.nn.Module):
        raise UsageError(spec, f"'{name}' is a {type(function).__name__}", "expected a function without arguments")
    return Function(spec, str(module.__file__ or place), function)


def callables(module: ModuleType) -> list[str]:
    """The public functions and classes that a module defines itself."""
    own = (n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__)
    return sorted(n for n in own if not n.startswith("_"))


def functions_of(path: Path) -> str:
    """A hint that lists the functions of a file, without running it."""
    names = re.findall(r"^def ([A-Za-z]\w*)\(\s*\)", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return f"it has: {', '.join(names)}" if names else "it has no function without arguments"


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError("model or data", f"there is no file '{path}'", MODEL_FORMS)
    # Its own folder comes first, as when Python runs the file, so that it can import its neighbours.
    _search_first(path.resolve().parent)
    spec = importlib.util.spec_from_file_location(f"planish_source_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickling look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise raised_inside(str(path), str(path), error) from error
    return module


def _from_package(name: str, forms: str) -> ModuleType:
    _search_first(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(name, f"there is no module '{error.name}'", forms) from None
        raise raised_inside(name, "", error) from error
    except (Exception, SystemExit) as error:
        found = importlib.util.find_spec(name.split(".")[0])
        raise raised_inside(name, (found.origin if found else "") or "", error) from error


def _search_first(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def raised_inside(where: str, file: str, error: BaseException) -> PlanishError:
    """A user's own exception: its class, message and the line of the user's file; our own errors as they are."""
    if isinstance(error, PlanishError):
        return error
    line = _line_of(file, error)
    what = first_line(error).rstrip(".")
    return UsageError(where, f"{line}{type(error).__name__}: {what}", "PLANISH_DEBUG=1 shows the traceback")


def _line_of(file: str, error: BaseException) -> str:
    """`model.py:12: `, the innermost line of `file` that the error passed through; of any file where none is in it."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}: "
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if file and Path(f.filename).resolve() == Path(file).resolve()]
    outside = [f for f in frames if f.filename != __file__ and "importlib" not in f.filename]
    frame = (own or outside or [None])[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}: " if frame else ""
