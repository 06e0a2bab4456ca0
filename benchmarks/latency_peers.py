"""What a user would run instead, each in its fastest form: float and int8, as calls without arguments."""

from collections.abc import Callable
from pathlib import Path

import torch
from quantization_peers import nncf, onnxruntime_static

import planish
from planish.backends.onnx import export_onnx

Call = Callable[[], object]
Make = Callable[[torch.nn.Module, torch.Tensor, int, Path], Call]


def eager(model: torch.nn.Module, x: torch.Tensor, threads: int, folder: Path) -> Call:
    return lambda: model(x)


def inductor(model: torch.nn.Module, x: torch.Tensor, threads: int, folder: Path) -> Call:
    """torch.compile as users call it, with the weights frozen into constants, which is its fastest form."""
    torch._inductor.config.freezing = True
    compiled = torch.compile(model)
    compiled(x)
    return lambda: compiled(x)


def onnxruntime(model: torch.nn.Module, x: torch.Tensor, threads: int, folder: Path) -> Call:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(_exported(model, x, folder), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)


def openvino(model: torch.nn.Module, x: torch.Tensor, threads: int, folder: Path) -> Call:
    """With float32 asked for: it takes bfloat16 by itself where the processor has it."""
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    converted = ov.convert_model(_exported(model, x, folder))
    request = ov.Core().compile_model(converted, "CPU", settings).create_infer_request()
    given = x.numpy()
    return lambda: request.infer({0: given})


def onnxruntime_int8(model: torch.nn.Module, x: torch.Tensor, threads: int, folder: Path) -> Call:
    """quantize_static, QDQ form, min-max."""
    run = onnxruntime_static(model, x, folder, threads, "MinMax").logits
    return lambda: run(x)


def openvino_int8(model: torch.nn.Module, x: torch.Tensor, threads: int, folder: Path) -> Call:
    """nncf.quantize with its defaults."""
    run = nncf(model, x, folder, threads).logits
    return lambda: run(x)


def _exported(model: torch.nn.Module, x: torch.Tensor, folder: Path) -> Path:
    path = folder / "float.onnx"
    if not path.exists():
        export_onnx(planish.capture(model, (x,)), path)
    return path


PEERS: dict[str, dict[str, Make]] = {
    "float": {"onnxruntime": onnxruntime, "openvino": openvino, "inductor": inductor, "eager": eager},
    "int8": {"onnxruntime": onnxruntime_int8, "openvino": openvino_int8},
}
