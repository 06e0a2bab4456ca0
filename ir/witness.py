"""The witness of a model: a digest of all that decides what `capture` makes of it, without capturing it.

torch.export runs the model's `forward` once on tensors without data and writes down what it calls. The witness does the
same with less around it: a copy of the model runs on shadows (`shadow.py`), at the example's batch and at twice it, as
capture doubles it. Digested are, for each call of a torch function and for each op below it, its name, the types of its
tensors, which tensors they are (weights by name, results by number, constants by content), its other arguments, and the
lines of the model's own code that led to it; that code itself, with the files that it stands in; the names, types, ties
and kinds of all parameters and buffers; the nesting of inputs and outputs; modes that PyTorch is in.

Two models of one witness call the same ops in the same order on the same weights, so torch.export writes down the same.
What could differ in theory: extents as formulas of the batch that agree at both batches, from the same lines of code;
code that asks whether it runs on torch's own fake tensors, or whether an extent is symbolic, and goes by what
it finds to a value that no call shows. The values of weights are not in the witness (`content_digest` is for them).
"""

import hashlib
import inspect
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .capture import doubled
from .graph import named_tensors, transient_buffers
from .ops import TORCH_FOLDER
from .shadow import NoShadow, Run, Types, content_digest

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")
# What torch.compiler.is_compiling and is_exporting read, which models ask.
_EXPORTING = ("_is_compiling_flag", "_is_exporting_flag")


def outline(model: torch.nn.Module, args: tuple[Any, ...]) -> str:
    """A digest of the names and types of a model's tensors and inputs: models of one share most of their `Types`."""
    leaves, nesting = pytree.tree_flatten(args)
    inputs = [_type(leaf) if isinstance(leaf, torch.Tensor) else repr(type(leaf)) for leaf in leaves]
    weights = {name: _type(tensor) for name, tensor in named_tensors(model).items()}
    return _digest([torch.__version__, str(nesting), *inputs, repr(weights)])


def witness(model: torch.nn.Module, args: tuple[Any, ...], types: Types | None = None) -> str | None:
    """The witness of a model with example inputs. The model, its mode and the random state stay as they are.

    types   what calls are known to yield; the run adds what is new

    None for a model that has none, which is captured as always: hooks, tensors of other classes or devices, scripted or
    compiled modules, values that decide which way the code goes, calls that PyTorch knows no types for.
    """
    try:
        _check_modules(model)
        record = _Record(types or Types())
        record.add(*_versions(), *_modes(), *_tensors_of(model))
        record.add(repr(list(inspect.signature(model.forward).parameters)))
        with torch.random.fork_rng(devices=[]), _as_exported(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for example in (args, doubled(args)):
                if example is not None:
                    record.run(model, example)
        return record.digest()
    except Exception:  # whatever a model's code raises for tensors without data: it is captured, and says it there
        return None


class _Record:
    """Lines of text about a model's runs, as one digest."""

    def __init__(self, types: Types):
        self._types = types
        self._sum = hashlib.sha256()
        self._codes: dict[tuple[str, CodeType], None] = {}  # equal code may stand in two files

    def add(self, *lines: str) -> None:
        for line in lines:
            self._sum.update(f"{len(line)} {line}\n".encode())

    def digest(self) -> str:
        self.add(*sorted({_code_digest(code) for _, code in self._codes}))
        return self._sum.hexdigest()

    def run(self, model: torch.nn.Module, args: tuple[Any, ...]) -> None:
        """One run of a copy of the model. Raises NoShadow, or whatever the model raises."""
        run = Run(self._types, self.add)
        shadows: dict[int, Any] = {}
        for name, tensor in named_tensors(model).items():
            if id(tensor) not in shadows:
                shadows[id(tensor)] = run.shadow(name, tensor)
        twin = deepcopy(model, shadows).eval()
        leaves, nesting = pytree.tree_flatten(args)
        self.add(str(nesting), *run.describe([leaf if not isinstance(leaf, torch.Tensor) else None for leaf in leaves]))
        inputs = [run.shadow(f"in {i}", v) if isinstance(v, torch.Tensor) else v for i, v in enumerate(leaves)]
        self.add(*run.describe(inputs))
        with _Calls(run, self):
            outputs = twin(*pytree.tree_unflatten(inputs, nesting))
        leaves, nesting = pytree.tree_flatten(outputs)
        self.add(str(nesting), *run.describe(leaves))

    def lines(self, frame: FrameType | None) -> str:
        """The lines of code outside torch that led here, innermost first; their code is noted."""
        found = []
        while frame is not None and frame.f_code is not _RUN:
            code = frame.f_code
            if not code.co_filename.startswith(TORCH_FOLDER):
                self._codes[code.co_filename, code] = None
                found.append(f"{_file_name(code.co_filename)}:{frame.f_lineno}")
            frame = frame.f_back
        return " ".join(found)


class _Calls(TorchFunctionMode):
    """Notes every call of a torch function: two may end in one op, and capture tells them apart."""

    def __init__(self, run: Run, record: _Record):
        super().__init__()
        self._run, self._record = run, record

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.HigherOrderOperator):
            raise NoShadow(f"{func} holds code of its own")
        called = self._run.describe((args, kwargs))
        self._record.add(_function_name(func), *called, *_modes(), self._record.lines(sys._getframe(1)))
        return func(*args, **kwargs)


_RUN = _Record.run.__code__


def _check_modules(model: torch.nn.Module) -> None:
    """Raises NoShadow for modules whose calls run more than their code, or other code."""
    if any(getattr(torch.nn.modules.module, name, None) for name in _GLOBAL_HOOKS):
        raise NoShadow("hooks on all modules")
    for module in model.modules():
        if any(vars(module).get(name) for name in _HOOKS):
            raise NoShadow("hooks")
        kind = type(module)
        if isinstance(module, torch.jit.ScriptModule) or kind.__module__.startswith("torch._dynamo"):
            raise NoShadow(f"a module is a {kind.__name__}")
        if vars(module).get("_compiled_call_impl") is not None:
            raise NoShadow("a module was compiled in place")


def _tensors_of(model: torch.nn.Module) -> Iterator[str]:
    """Parameters and buffers with all that is known of them but their values; other tensors with theirs."""
    transient = transient_buffers(model)
    first: dict[int, str] = {}
    for name, tensor in named_tensors(model).items():
        owner = first.setdefault(id(tensor), name)
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        yield f"{name} {owner} {_type(tensor)} {tensor.requires_grad} {is_parameter} {name in transient}"
    for path, module in model.named_modules(remove_duplicate=False):
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                yield f"{path}.{name} {_type(value)} {content_digest(value)}"


def _type(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} {list(tensor.stride())} {tensor.layout} {tensor.device}"


def _versions() -> tuple[str, ...]:
    return torch.__version__, str(torch.version.git_version), sys.version


def _modes() -> tuple[str, ...]:
    """What PyTorch is set to, as far as a model's code sees it."""
    autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    grad = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    return tuple(map(str, (*autocast, *grad, torch.get_default_dtype(), torch.get_default_device())))


@contextmanager
def _as_exported() -> Iterator[None]:
    """Code that asks whether it is exported hears yes, as it does in capture."""
    before = {name: getattr(torch.compiler, name) for name in _EXPORTING}
    try:
        for name in _EXPORTING:
            setattr(torch.compiler, name, True)
        yield
    finally:
        for name, value in before.items():
            setattr(torch.compiler, name, value)


def _function_name(func: Any) -> str:
    if isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return str(func)
    named = getattr(func, "__self__", func) if getattr(func, "__name__", "") in ("__get__", "__set__") else func
    return f"{getattr(named, '__module__', '')}.{getattr(named, '__qualname__', type(named).__name__)}"


@lru_cache(maxsize=4096)
def _file_name(path: str) -> str:
    """The name that a graph gives as a call's place; nothing for generated code, whose name is a counter."""
    return "" if path.startswith("<") else Path(path).name


def _code_digest(code: CodeType) -> str:
    return _digest(
        [_file_name(code.co_filename), str(code.co_firstlineno), _file_digest(code.co_filename), *_code_parts(code)]
    )


def _code_parts(code: CodeType) -> Iterator[str]:
    yield from (code.co_name, code.co_code.hex(), repr(code.co_names), repr(code.co_varnames), repr(code.co_freevars))
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _code_parts(value)
        else:  # the order of a set's text changes from process to process
            yield repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


@lru_cache(maxsize=4096)
def _file_digest(path: str) -> str:
    """sha256 of a source file as it was when it was first asked for; nothing for code from elsewhere."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""


def _digest(lines: list[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{len(line)} {line}\n".encode())
    return digest.hexdigest()
