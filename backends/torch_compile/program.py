"""One compiled form of a graph of dynamo's: for one set of weights in one state, and for the shapes it was made for."""

import weakref
from collections.abc import Sequence

import torch

from ...ir.errors import UsageError, first_line
from ...ir.shapes import TensorSpec, check_inputs
from ..artifact import Artifact
from .records import logger


class Stamp:
    """Which tensors the weights were, and what state they were in.

    In-place operations advance a tensor's version, and a new `.data` has a new address. A write through `.data`
    leaves no trace: after one, call torch._dynamo.reset().
    """

    def __init__(self, weights: Sequence[torch.Tensor]):
        self._tensors = [weakref.ref(tensor) for tensor in weights]
        self._versions = _versions(weights)
        self._addresses = [tensor.data_ptr() for tensor in weights]

    def is_of(self, weights: Sequence[torch.Tensor]) -> bool:
        return all(ref() is tensor for ref, tensor in zip(self._tensors, weights, strict=True))

    def is_current(self, weights: Sequence[torch.Tensor]) -> bool:
        return self._versions == _versions(weights) and self._addresses == [t.data_ptr() for t in weights]

    def is_alive(self) -> bool:
        return all(ref() is not None for ref in self._tensors)


def _versions(weights: Sequence[torch.Tensor]) -> list[int]:
    """Inference tensors count no writes; graphs that read them are never compiled."""
    return [-1 if tensor.is_inference() else tensor._version for tensor in weights]


class Program:
    """A compiled form.

    numbers   inputs that are no tensors, whose values are in the code
    specs     what the tensors must be
    artifact  None where everything runs in PyTorch
    """

    def __init__(self, weights: Sequence[torch.Tensor], numbers: tuple, specs: list[TensorSpec],
                 artifact: Artifact | None):  # fmt: skip
        self.numbers, self.artifact = numbers, artifact
        self.stamp = Stamp(weights)
        self._specs = specs
        self._changed = self.stamp
        self._calls_since_change = 0

    def fits(self, inputs: Sequence[torch.Tensor]) -> bool:
        """True if the code is for inputs of these shapes."""
        try:
            check_inputs("the compiled region", self._specs, tuple(inputs))
        except UsageError:
            return False
        return True

    def calls_since_change(self, weights: Sequence[torch.Tensor]) -> int:
        """How many calls have seen the weights as they are now, this one included, since they were changed."""
        if not self._changed.is_current(weights):
            self._changed, self._calls_since_change = Stamp(weights), 0
        self._calls_since_change += 1
        return self._calls_since_change

    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...] | None:
        """The outputs; None where they are to be computed in PyTorch."""
        if self.artifact is None:
            return None
        try:
            return tuple(self.artifact.run(inputs))
        except Exception as error:
            self.artifact = None
            logger.warning("compiled code failed, PyTorch takes over: %s", first_line(error))
            return None
