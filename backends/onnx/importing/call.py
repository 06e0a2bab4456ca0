"""One node of an ONNX file, and the integers in it that say how to compute."""

from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import numpy_helper

from ....ir.errors import CaptureError


@dataclass(frozen=True)
class Numbers:
    """A tensor of integers that says how to compute: a shape, axes, an index. Extents in it may be symbolic.

    It is never a torch.Tensor, whose elements torch.export would not know.
    """

    values: list[Any]
    is_scalar: bool = False

    def tensor(self) -> torch.Tensor:
        return torch.tensor(self.values[0] if self.is_scalar else self.values)


@dataclass(frozen=True)
class Call:
    """One node: its operator, the names of its values, and its attributes as Python values."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    opset: int

    @staticmethod
    def of(node: onnx.NodeProto, opset: int) -> "Call":
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        plain = {name: v.decode() if isinstance(v, bytes) else v for name, v in attributes.items()}
        return Call(node.op_type, list(node.input), list(node.output), plain, opset)

    def constant(self) -> torch.Tensor:
        ((name, value),) = self.attributes.items()
        if name == "value":
            return torch.from_numpy(numpy_helper.to_array(value).copy())
        return torch.tensor(value, dtype=torch.float32 if "float" in name else torch.int64)

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def refuse(self, what: str) -> CaptureError:
        return CaptureError(f"ONNX operator '{self.op}'", f"{what} has no form in PyTorch here")


def integers(value: Any) -> list[Any]:
    """A shape, axes or the like as a list."""
    return value.values if isinstance(value, Numbers) else value.reshape(-1).tolist()


def given(call: Call, name: str, value: Any, default: Any = None) -> Any:
    """What older opsets hold as an attribute and newer ones as an input: a list, or the default."""
    if value is not None:
        return integers(value)
    return call.get(name, default)
