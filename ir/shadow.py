"""Shadows: tensors without data that say they are on the CPU, and what ops yield of them.

torch's own fake tensors do the same for everything that export needs; to load what they stand on takes longer than to
find a compiled model. A shadow knows its type, and asks PyTorch's meta kernels only for calls that were never met.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

# Values that are the same in every process when their texts are.
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.layout, torch.memory_format, range)
_NAMESPACES = frozenset({"aten", "prim", "prims", "planish"})
_META, _CPU = torch.device("meta"), torch.device("cpu")


class NoShadow(Exception):
    """A call that does not follow from types alone, or whose arguments have no text that tells them apart."""


class Types:
    """What calls yield, by op and types of arguments. The same in every process of one PyTorch, so that it can be kept.

    known   digest of a call -> the types of its results, JSON-able
    """

    def __init__(self, known: dict[str, Any] | None = None):
        self.known = {} if known is None else known
        self.found_new = False

    def of(self, func: Any, text: str, args: Any, kwargs: Any) -> Any:
        """The results' types: [dtype, shape, stride, offset] for a tensor, None for None, lists of such."""
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        if key not in self.known:
            self.known[key] = _results(func, args, kwargs)
            self.found_new = True
        return self.known[key]


class Shadow(torch.Tensor):
    """A tensor without data. label: which one it is; run: what is told of every call that takes it."""

    label: str
    run: "Run"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args and isinstance(args[0], Shadow) else None
        taken = (
            first
            if first is not None
            else next(leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Shadow))
        )
        return taken.run.call(func, args, kwargs)


class Run:
    """One run on shadows. note: takes a line of text about every call, in order."""

    def __init__(self, types: Types, note: Callable[[str], None]):
        self._types, self._note = types, note
        self._count = 0
        self._constants: dict[int, tuple[torch.Tensor, int, str]] = {}

    def shadow(self, label: str, like: torch.Tensor) -> Shadow:
        """The shadow of a real tensor. Raises NoShadow for tensors that are more than numbers in memory."""
        _check(like)
        made = self._made(label, like.dtype, like.shape, like.stride(), int(like.storage_offset()), like.requires_grad)
        made._is_param = isinstance(like, torch.nn.Parameter)  # type: ignore[attr-defined]  what isinstance asks
        return made

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A call of an op that takes shadows: noted, and its results as shadows."""
        if not is_known_op(func):
            raise NoShadow(f"{func} is an op of another library")
        text, labels = self.describe((str(func), args, kwargs))
        if torch.Tag.data_dependent_output in func.tags:
            raise NoShadow(f"{func} looks at data")
        results = self._types.of(func, text, args, kwargs)
        self._note(f"{text} {labels} -> {results}")
        return _with_written(func, args, kwargs, self._shadows(results))

    def describe(self, value: Any) -> tuple[str, str]:
        """A value as text: what types and plain values it holds, and which tensors. Raises NoShadow."""
        parts: list[str] = []
        labels: list[str] = []
        self._describe(value, parts, labels)
        return " ".join(parts), " ".join(labels)

    def _describe(self, value: Any, parts: list[str], labels: list[str]) -> None:
        if isinstance(value, torch.Tensor):
            kind = "p" if isinstance(value, torch.nn.Parameter) else "t"
            parts.append(
                f"{kind}:{value.dtype}{list(value.shape)}{value.stride()}{value.storage_offset()}{value.requires_grad}"
            )
            labels.append(value.label if isinstance(value, Shadow) else self._constant(value))
        elif isinstance(value, torch.device):
            if value.type != "cpu":
                raise NoShadow(f"{value} is asked for")
            parts.append("cpu")
        elif isinstance(value, _PLAIN) or value is Ellipsis:
            parts.append(repr(value))
        elif type(value) in (tuple, list, torch.Size, slice):
            within = (value.start, value.stop, value.step) if isinstance(value, slice) else value
            parts.append(f"{type(value).__name__}({len(within)}")
            for each in within:
                self._describe(each, parts, labels)
        elif type(value) is dict:
            parts.append(f"dict({len(value)}")
            for key, each in value.items():
                self._describe(key, parts, labels)
                self._describe(each, parts, labels)
        else:
            raise NoShadow(f"a {type(value).__name__} is an argument")

    def _constant(self, tensor: torch.Tensor) -> str:
        """A real tensor among the shadows: its content."""
        known = self._constants.get(id(tensor))
        if known is None or known[1] != tensor._version:
            _check(tensor)
            known = self._constants[id(tensor)] = (tensor, tensor._version, content_digest(tensor))
        return f"{list(self._constants).index(id(tensor))}={known[2]}"

    def _shadows(self, results: Any) -> Any:
        if results is None:
            return None
        if results and isinstance(results[0], str):
            self._count += 1
            name, shape, stride, offset = results
            return self._made(f"%{self._count}", getattr(torch, name), shape, stride, offset, False)
        return [self._shadows(each) for each in results]

    def _made(self, label: str, dtype: Any, shape: Any, stride: Any, offset: int, requires_grad: bool) -> Shadow:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            Shadow, shape, strides=stride, storage_offset=offset, dtype=dtype, device=_CPU, requires_grad=requires_grad
        )
        made.label, made.run = label, self
        return made


def is_known_op(target: Any) -> bool:
    """Whether PyTorch's version and ours say what an op computes: others may change behind the same name."""
    return not isinstance(target, torch._ops.OpOverload) or target.namespace in _NAMESPACES


def content_digest(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's numbers, in the order of its dims. Its type is not in it."""
    flat = tensor.detach().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data if flat.numel() else b"").hexdigest()


def _check(tensor: torch.Tensor) -> None:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        raise NoShadow(f"a tensor is a {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise NoShadow(f"a tensor is {tensor.layout} on {tensor.device}")
    if tensor.is_conj() or tensor.is_neg():
        raise NoShadow("a tensor is a lazy conjugate")


def _results(func: Any, args: Any, kwargs: Any) -> Any:
    """Asked of PyTorch's meta kernels. Raises NoShadow where they do not know."""
    args, kwargs = pytree.tree_map(_as_meta, (args, kwargs))
    try:
        with torch.no_grad():
            return _types(func(*args, **kwargs))
    except NotImplementedError as error:
        raise NoShadow(f"{func} has no meta kernel") from error


def _as_meta(value: Any) -> Any:
    if isinstance(value, Shadow):
        made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=_META)
        return made.as_strided(value.shape, value.stride(), value.storage_offset()) if value.storage_offset() else made
    if isinstance(value, torch.Tensor):
        return value.to(_META)
    return _META if isinstance(value, torch.device) else value


def _types(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        offset = value.storage_offset()
        return [str(value.dtype).removeprefix("torch."), list(value.shape), list(value.stride()), offset]
    if isinstance(value, (tuple, list)):
        return [_types(each) for each in value]
    if value is None:
        return None
    raise NoShadow(f"a call gives a {type(value).__name__}")


def _with_written(func: Any, args: Any, kwargs: Any, results: Any) -> Any:
    """The results of a call, those that it wrote into being the arguments themselves."""
    schema = func._schema
    if schema.is_mutable:
        given = {a.name: v for a, v in zip(schema.arguments, args, strict=False)} | kwargs
        written = [given.get(a.name) for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        if not all(isinstance(value, Shadow) for value in written):
            raise NoShadow(f"{func} writes into a constant, or into several tensors")
        if any(r.alias_info is not None and r.alias_info.is_write for r in schema.returns):
            if len(written) != 1 or len(schema.returns) != 1 or not _same_type(written[0], results):
                raise NoShadow(f"{func} changes the type of what it writes into")
            return written[0]
    return tuple(results) if len(schema.returns) > 1 else results


def _same_type(one: Any, two: Any) -> bool:
    return (one.dtype, one.shape, one.stride()) == (two.dtype, two.shape, two.stride())
