"""Other engines on an emulated core, from their aarch64 wheels (`prepare_peers.py`), with the same model and input.

onnxruntime runs our ONNX file, in int8 as its own quantize_static makes it (signed activations, weights per channel, on
the same example). ncnn runs what pnnx converts, in float32 (pip install pnnx).
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from cores import RUNS, Core, Cost, cost, count

import planish
from planish.backends.onnx import export_onnx

SCRIPT = Path(__file__).with_name("infer.py")
Writer = Callable[[torch.nn.Module, torch.Tensor, Path], Path]


def onnx_float(model: torch.nn.Module, x: torch.Tensor, room: Path) -> Path:
    path = room / "float.onnx"
    export_onnx(planish.Pipeline.parse("canonicalize, fold-batch-norm").run(planish.capture(model, (x,))).graph, path)
    return path


def onnx_int8(model: torch.nn.Module, x: torch.Tensor, room: Path) -> Path:
    from onnxruntime import InferenceSession, quantization

    source, path = onnx_float(model, x, room), room / "int8.onnx"
    name = InferenceSession(str(source), providers=["CPUExecutionProvider"]).get_inputs()[0].name

    class Example(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{name: x.numpy()}])

        def get_next(self):
            return next(self.left, None)

    quantization.quantize_static(str(source), str(path), Example(), per_channel=True)
    return path


def ncnn_float(model: torch.nn.Module, x: torch.Tensor, room: Path) -> Path:
    import pnnx

    source = room / "ncnn.pt"
    torch.jit.trace(model, (x,)).save(source)
    shape = f"inputshape=[{','.join(map(str, x.shape))}]"
    subprocess.run([pnnx.EXEC_PATH, str(source), shape, "fp16=0"], capture_output=True, check=True)
    return room / "ncnn.ncnn.param"


PEERS: dict[str, dict[str, Writer]] = {
    "onnxruntime": {"fp32": onnx_float, "int8": onnx_int8},
    "ncnn": {"fp32": ncnn_float},
}


def peer(
    engine: str, model: torch.nn.Module, x: torch.Tensor, core: Core, precision: str, folder: Path, room: Path
) -> Cost | None:
    """The cost of one inference of an engine; None where it has no form of this precision here.

    folder: what `prepare_peers.py` filled. Raises RuntimeError where the engine fails, or where its float outputs are
    not the model's.
    """
    writer = PEERS[engine].get(precision)
    if writer is None:
        return None
    # What the engines read of the machine is the emulated one's.
    information = folder / "root/proc/cpuinfo"
    information.parent.mkdir(exist_ok=True)
    information.write_text(core.cpuinfo)
    with torch.no_grad():
        wanted, path = model(x).numpy(), writer(model, x, room)
    np.save(room / "x.npy", x.numpy())
    python = [str(folder / "root/usr/bin/python3.11"), "-s", str(SCRIPT)]
    names = [engine, str(path), str(room / "x.npy"), str(room / "y.npy")]
    options = ["-L", str(folder / "root"), "-E", f"PYTHONPATH={folder / 'engines'}", "-E", "PYTHONHASHSEED=0"]
    one, many = (count(core, [*python, *names, str(runs)], room, options) for runs in (1, RUNS))
    got = np.load(room / "y.npy")
    error = float(np.abs(got - wanted).max() / np.abs(wanted).max())
    if precision == "fp32" and not error < 1e-3:
        raise RuntimeError(f"{engine} on {core.name}: its outputs are off by {error:.1e} of the largest")
    return cost(core, one, many)
