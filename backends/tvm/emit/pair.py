"""A 1x1 convolution and the depthwise convolution that alone reads it: two products that become one kernel."""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import fx


class Fused(Protocol):
    """A product with what is fused behind it."""

    @property
    def result(self) -> fx.Node: ...

    @property
    def source(self) -> fx.Node: ...


Kind = TypeVar("Kind", bound=Fused)


@dataclass(frozen=True)
class Pair(Generic[Kind]):
    """`expand` feeds `depthwise`, and nothing else."""

    expand: Kind
    depthwise: Kind

    @property
    def result(self) -> fx.Node:
        """The node whose value the kernel yields."""
        return self.depthwise.result

    @property
    def source(self) -> fx.Node:
        """What the kernel reads."""
        return self.expand.source
