"""An arithmetic of ARM that runs on this processor."""

from dataclasses import dataclass

from planish.backends.tvm.arithmetic import Smull, Vmull


@dataclass(frozen=True)
class PortableSmull(Smull):
    """Smull, with the storing of 32-bit ARM, which needs no intrinsics of ARM. Its own products do."""

    held, steps, between = Vmull.held, Vmull.steps, Vmull.between
