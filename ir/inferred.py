"""Results of shape inference, kept by op and types of its arguments: passes and checks infer the same calls again."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

# Results live as long as the fake mode whose symbols they share, in an attribute of it: a table of ours would refer to
# the mode through them, and keep it for ever.
_ATTRIBUTE = "_planish_inferred"
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


@dataclass(frozen=True)
class Call:
    """An op with the types of its arguments, under one mode. symbols: those of its arguments."""

    known: dict[Hashable, Any]
    key: Hashable
    symbols: frozenset[Any]

    @staticmethod
    def of(mode: FakeTensorMode | None, target: Any, args: Any, kwargs: Any) -> "Call | None":
        """None for a call whose result does not follow from types alone: it takes real tensors, or constants."""
        leaves, structure = pytree.tree_flatten((args, kwargs))
        described = [_described(leaf) for leaf in leaves]
        if mode is None or None in described:
            return None
        known = vars(mode).setdefault(_ATTRIBUTE, {})
        return Call(known, (target, str(structure), *described), frozenset(_symbols(leaves)))

    def result(self) -> Any:
        """What the call gave before; None where it was not made, or gave what another call may not have."""
        return self.known.get(self.key)

    def keep(self, result: Any) -> Any:
        """The result, kept unless it brings a symbol of its own, as the number of nonzero elements does."""
        if self.symbols.issuperset(_symbols(pytree.tree_leaves(result))):
            self.known[self.key] = result
        return result


def _described(leaf: Any) -> Hashable | None:
    """The type of an argument, or the value of a plain one."""
    if isinstance(leaf, FakeTensor):
        if leaf.layout != torch.strided or leaf.constant is not None:
            return None
        sizes = *leaf.shape, *leaf.stride(), leaf.storage_offset()
        kind = leaf.dtype, leaf.device, leaf.requires_grad, isinstance(leaf, torch.nn.Parameter)
        return kind, leaf.ndim, tuple(map(_extent, sizes))
    if isinstance(leaf, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return type(leaf), _extent(leaf)
    return (type(leaf), leaf) if isinstance(leaf, _PLAIN) else None


def _extent(extent: Any) -> Hashable:
    return extent.node.expr if isinstance(extent, (torch.SymInt, torch.SymFloat, torch.SymBool)) else extent


def _symbols(leaves: list[Any]) -> Iterator[Any]:
    for leaf in leaves:
        for extent in leaf.shape if isinstance(leaf, torch.Tensor) else (leaf,):
            if isinstance(extent, (torch.SymInt, torch.SymFloat, torch.SymBool)):
                yield from extent.node.expr.free_symbols
