"""The value of every node while Relax is emitted, in whichever layout its reader wants.

Kernels of our own read and write packed activations (NHWC, channels padded to the lanes); TVM's converters see plain
PyTorch layout. A conversion is emitted when somebody first asks for the other layout, and kept.
"""

from collections.abc import Callable

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

    def __missing__(self, node: fx.Node) -> relax.Expr:
        plain = self[node] = self._to_plain(node, self._packed[node])
        return plain

    def packed(self, node: fx.Node) -> relax.Expr:
        if node not in self._packed:
            self._packed[node] = self._to_packed(node, self[node])
        return self._packed[node]

    def packed_or_none(self, node: fx.Node) -> relax.Expr | None:
        """The packed form if it exists already."""
        return self._packed.get(node)

    def set_packed(self, node: fx.Node, value: relax.Expr) -> None:
        self._packed[node] = value

    def is_packed(self, node: object) -> bool:
        """True if the value exists in packed form already."""
        return node in self._packed
