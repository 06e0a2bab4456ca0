"""The value of every node while Relax is emitted, in whichever layout its reader wants.

Kernels of our own read and write packed activations (NHWC, channels padded to the lanes); TVM's converters see plain
PyTorch layout. A conversion is emitted when somebody first asks for the other layout, and kept. So is the copy that
puts the parts of a concatenation together.
"""

from collections.abc import Callable, Sequence

from torch import fx
from tvm import relax


class Values(dict):
    """A node -> Relax value table that TVM's importer can use as its environment.

    `values[node]` is the plain form; `values.packed(node)` the packed one.
    """

    def __init__(self, to_plain: Callable[[fx.Node, relax.Expr], relax.Expr],
                 to_packed: Callable[[fx.Node, relax.Expr], relax.Expr]):  # fmt: skip
        super().__init__()
        self._to_plain, self._to_packed = to_plain, to_packed
        self._packed: dict[fx.Node, relax.Expr] = {}
        self._parts: dict[fx.Node, tuple[Sequence[fx.Node], Callable[[], relax.Expr]]] = {}

    def __missing__(self, node: fx.Node) -> relax.Expr:
        if not self.is_packed(node):
            raise KeyError(node)
        plain = self[node] = self._to_plain(node, self.packed(node))
        return plain

    def packed(self, node: fx.Node) -> relax.Expr:
        if node not in self._packed:
            together = self._parts.pop(node, None)
            self._packed[node] = together[1]() if together else self._to_packed(node, self[node])
        return self._packed[node]

    def packed_or_none(self, node: fx.Node) -> relax.Expr | None:
        """The packed form if it exists already."""
        return self._packed.get(node)

    def set_packed(self, node: fx.Node, value: relax.Expr) -> None:
        self._packed[node] = value

    def set_parts(self, node: fx.Node, parts: Sequence[fx.Node], join: Callable[[], relax.Expr]) -> None:
        """The value is that of other nodes, side by side along channels; `join` emits it as one packed map."""
        self._parts[node] = parts, join

    def parts(self, node: fx.Node) -> Sequence[fx.Node]:
        """The nodes whose values it is, as long as nobody asked for the whole; none for a value of its own."""
        return self._parts[node][0] if node in self._parts else ()

    def is_packed(self, node: object) -> bool:
        """True if the value exists in packed form already, or in parts."""
        return node in self._packed or node in self._parts
