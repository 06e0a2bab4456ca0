"""Eight bits by others, each as its users would: calibrated on the same images, answering with logits.

onnxruntime's quantize_static with each of its calibrators, NNCF on the OpenVINO model, torchao's PT2E for x86.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import planish
from planish.backends.onnx import export_onnx


@dataclass(frozen=True)
class Candidate:
    """logits: of a batch of images; once: one image, for timing; None where the peer simulates integers in float."""

    name: str
    logits: Callable[[torch.Tensor], torch.Tensor]
    once: Callable[[], object] | None


def onnxruntime_static(
    model: torch.nn.Module, seen: torch.Tensor, folder: Path, threads: int, method: str
) -> Candidate:
    """quantize_static in QDQ form, u8 activations, s8 weights per channel."""
    import onnxruntime
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self.left = iter([{name: image[None].numpy()} for image in seen])

        def get_next(self) -> dict | None:
            return next(self.left, None)

    plain, prepared, quantized = (folder / f"{stage}.onnx" for stage in ("plain", "prepared", f"ort-{method}"))
    if not plain.exists():
        export_onnx(planish.capture(model, (seen[:1],)), plain)
        quant_pre_process(plain, prepared)
    name = onnxruntime.InferenceSession(plain).get_inputs()[0].name
    quantize_static(
        prepared, quantized, Reader(name), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        calibrate_method=getattr(CalibrationMethod, method),
    )  # fmt: skip
    return onnx_candidate(f"onnxruntime, {method}", quantized, seen[:1], threads)


def onnx_candidate(name: str, path: Path, image: torch.Tensor, threads: int) -> Candidate:
    """A file in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    key = session.get_inputs()[0].name

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.asarray(session.run(None, {key: images.numpy()})[0]))

    return Candidate(name, run, lambda: run(image))


def nncf(model: torch.nn.Module, seen: torch.Tensor, folder: Path, threads: int) -> Candidate:
    """nncf.quantize with its defaults, run by OpenVINO."""
    import nncf
    import openvino

    data = nncf.Dataset([image[None].numpy() for image in seen])
    quantized = nncf.quantize(openvino.convert_model(_plain(model, seen, folder)), data, subset_size=len(seen))
    return _openvino("NNCF on OpenVINO", quantized, seen[:1], threads)


def _plain(model: torch.nn.Module, seen: torch.Tensor, folder: Path) -> Path:
    path = folder / "plain.onnx"
    if not path.exists():
        export_onnx(planish.capture(model, (seen[:1],)), path)
    return path


def _openvino(name: str, model, image: torch.Tensor, threads: int) -> Candidate:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.array(request.infer({0: images.numpy()})[0]))

    return Candidate(name, run, lambda: run(image))


def pt2e(model: torch.nn.Module, seen: torch.Tensor, folder: Path, threads: int) -> Candidate:
    """torchao's prepare_pt2e and convert_pt2e with the quantizer for x86; integers are simulated in float."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(model, (seen[:1],)).module(), quantizer)
    with torch.no_grad():
        for image in seen:
            prepared(image[None])
    converted = convert_pt2e(prepared)
    return Candidate("torchao PT2E", lambda images: torch.cat([converted(image[None]) for image in images]), None)


def candidates(model: torch.nn.Module, seen: torch.Tensor, threads: int) -> Iterator[Candidate]:
    """Every peer. Those that are not installed are an ImportError."""
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room)
        for method in ("MinMax", "Entropy", "Percentile"):
            yield onnxruntime_static(model, seen, folder, threads, method)
        for make in (nncf, pt2e):
            yield make(model, seen, folder, threads)
