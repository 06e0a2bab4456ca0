"""How a model is called: the names and nesting of its arguments, and flat tensors arranged that way."""

from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from .errors import UsageError


def argument_names(structure: fx.Graph) -> list[str]:
    """The model's own argument names, positional ones first."""
    return list(structure._codegen.pytree_info.orig_args)  # type: ignore[attr-defined]


def input_spec(structure: fx.Graph) -> pytree.TreeSpec:
    """The nesting of (args, kwargs)."""
    return structure._codegen.pytree_info.in_spec  # type: ignore[attr-defined]


def output_spec(structure: fx.Graph) -> pytree.TreeSpec:
    """The nesting of what the model gives."""
    return structure._codegen.pytree_info.out_spec  # type: ignore[attr-defined]


def arrange(structure: fx.Graph, leaves: list[Any]) -> tuple[tuple, dict[str, Any]]:
    """One value per placeholder, in order, as the (args, kwargs) that the model takes."""
    return pytree.tree_unflatten(leaves, input_spec(structure))


def bind(where: str, structure: fx.Graph, args: tuple, kwargs: dict[str, Any]) -> list[Any]:
    """The leaves of a call, one per placeholder, in order. The inverse of `arrange`.

    Raises UsageError for missing and unknown arguments and for another nesting than the captured one.
    """
    names = argument_names(structure)
    takes = f"the model takes {', '.join(names) or 'none'}"
    if len(args) > len(names):
        raise UsageError(where, f"{len(args)} arguments were given", takes)
    given = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name not in names or name in given:
            problem = "is given twice" if name in given else "is unknown"
            raise UsageError(where, f"argument '{name}' {problem}", takes)
        given[name] = value
    if missing := [name for name in names if name not in given]:
        raise UsageError(where, f"argument '{missing[0]}' is missing", takes)
    wanted = input_spec(structure)
    positional = wanted.child(0).num_children
    ordered = tuple(given[name] for name in names[:positional])
    leaves, spec = pytree.tree_flatten((ordered, {name: given[name] for name in names[positional:]}))
    if spec != wanted:
        raise UsageError(where, "the inputs are nested in another way than at capture", f"expected {_nesting(wanted)}")
    return leaves


def _nesting(spec: pytree.TreeSpec) -> str:
    args, kwargs = pytree.tree_unflatten(["tensor"] * spec.num_leaves, spec)
    return ", ".join([*map(str, args), *(f"{name}={value}" for name, value in kwargs.items())]).replace("'tensor'", "_")
