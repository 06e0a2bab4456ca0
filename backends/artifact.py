"""What a backend makes of a graph: something that runs, can be saved as a bundle, and says what it is."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..ir.graph import Graph
from ..ir.shapes import TensorSpec
from .bundle import golden_members

Golden = tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]

# How far a golden output may be from PyTorch's: summation order for floats, nothing for integers. A model quantized
# only in part, computed in another order, rounds some values to the neighbouring step, and every later layer sees that.
FLOAT_TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
QUANTIZED_STEPS = 8
HALF_SHARE = 1 / 32  # of the largest output: kernels sum in float16 too, PyTorch does not


@dataclass(frozen=True)
class Edges:
    """What a graph takes and gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @staticmethod
    def of(graph: Graph) -> "Edges":
        return Edges(tuple(graph.inputs), tuple(graph.outputs))


class Artifact(ABC):
    """A built model.

    others  ops left to TVM's own code generation, with counts
    integers  products that its code computes in integers
    eager   calls that stay in PyTorch: (op, source line)
    reasons why they stay, where it is not for want of the op
    facts   sizes in bytes, compilers: plain values for the report
    key     under which the cache holds its code; None where it does not, or not under one
    """

    def __init__(self) -> None:
        self.others: dict[str, int] = {}
        self.integers = 0
        self.eager: tuple[tuple[str, str], ...] = ()
        self.reasons: tuple[str, ...] = ()
        self.facts: dict[str, Any] = {}
        self.key: str | None = None

    @property
    @abstractmethod
    def layers(self) -> tuple[dict[str, str], ...]:
        """One row per kernel call: node, kernel, instruction."""

    @abstractmethod
    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The outputs for inputs that were checked."""

    @abstractmethod
    def save(self, path: str | os.PathLike, report: dict[str, Any], golden: Golden) -> Path:
        """Write a bundle. `report` is stored in its manifest; `golden` is a pair that PyTorch computed."""


def tolerance(report: dict[str, Any], outputs: Sequence[torch.Tensor]) -> dict[str, float]:
    """How far a device's golden outputs may be from PyTorch's, as rtol and atol."""
    if report.get("exact"):
        return {"rtol": 0.0, "atol": 0.0}
    is_quantized = report["fake_quantized"] or report.get("integers")
    if not (is_quantized or report.get("half")):
        return FLOAT_TOLERANCE
    largest = max((float(t.abs().max()) for t in outputs if t.dtype.is_floating_point), default=1.0)
    return {"rtol": FLOAT_TOLERANCE["rtol"], "atol": largest * (QUANTIZED_STEPS / 255 if is_quantized else HALF_SHARE)}


def golden_pair(golden: Golden) -> dict[str, bytes]:
    """The golden input and output as members of a bundle."""
    inputs, outputs = golden
    return golden_members([t.numpy() for t in inputs], [t.numpy() for t in outputs])
