"""onnxsim, taken only where its model is sound, no larger, and gives the same outputs."""

from collections.abc import Callable
from dataclasses import dataclass

import onnx
import onnxsim

from ...ir.errors import first_line
from .check import Agreement


@dataclass(frozen=True)
class Simplified:
    """A model, how onnxsim's agrees with PyTorch (None where it was not taken), and why it was not taken."""

    model: onnx.ModelProto
    agreement: Agreement | None = None
    note: str = ""


def simplify(
    plain: onnx.ModelProto,
    finish: Callable[[onnx.ModelProto], onnx.ModelProto],
    verify: Callable[[onnx.ModelProto], Agreement],
) -> Simplified:
    """onnxsim's model, finished and verified; else the plain one, and why.

    Quantize and dequantize nodes are in a domain of their own by now, which onnxsim leaves alone: it would fold a
    dequantized weight into a float one.
    """
    try:
        simpler, _ = onnxsim.simplify(plain)
        simpler = finish(simpler)
        agreement = verify(simpler)
    except Exception as failure:
        return Simplified(plain, note=f"onnxsim's model was not taken: {first_line(failure)}")
    if simpler.ByteSize() > plain.ByteSize():
        growth = f"{plain.ByteSize()} to {simpler.ByteSize()} bytes"
        return Simplified(plain, note=f"onnxsim's model was not taken: it grew from {growth}")
    return Simplified(simpler, agreement)
