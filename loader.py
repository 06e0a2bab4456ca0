"""load(): a bundle from disk becomes a callable again, on this machine or on an emulated one."""

import os
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .backends.bundle import Bundle
from .backends.device import Device
from .backends.manifest import Manifest
from .ir.errors import UsageError
from .report import Report


class LoadedModel:
    """A bundle made ready to run. Called with tensors in the order of `manifest.inputs`.

    manifest  what the bundle says of itself: inputs, outputs, target, recipe, versions
    report    what the compilation did, as `CompiledModel.report`; None for a bundle that carries none
    """

    def __init__(self, bundle: Bundle, device: Device):
        self.bundle, self.device = bundle, device
        self._session = device.load(bundle)

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def report(self) -> Report | None:
        return Report.from_dict(self.manifest.report)

    def __call__(self, *args: Any) -> Any:
        """The output tensor; a tuple where the model has several.

        Raises UsageError for a wrong count, shape or dtype, or a NaN in an input.
        """
        arrays = [_array(value) for value in pytree.tree_leaves(args) if value is not None]
        outputs = [torch.from_numpy(array) for array in self._session.run(arrays)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.manifest.inputs))
        return f"LoadedModel({str(self.bundle.path)!r}, for {self.manifest.target['name']}, takes {inputs})"

    def __enter__(self) -> "LoadedModel":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Remove what the device has on disk; garbage collection does so too."""
        self._session.close()


def load(path: str | os.PathLike, device: str = "local", *, threads: int = 1) -> LoadedModel:
    """Open a bundle that `CompiledModel.save` wrote. Every byte is checked against its hash first.

    device   "local" (this process) or "emulator" (a board's processor, emulated: exact, slow)
    threads  that the model may use

    Raises BundleError for a bundle that is truncated, edited, of another version or for another CPU, UsageError for
    an unknown device or one that is not installed. Bundles hold native code: load those whose origin you trust.
    """
    chosen = Device.get(device, threads=threads)
    return LoadedModel(Bundle.open(path), chosen)


def _array(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        raise UsageError("the loaded model", f"an input is a {type(value).__name__}", "expected tensors")
    if value.dtype == torch.bfloat16:
        raise UsageError("the loaded model", "an input has dtype bfloat16", "no bundle takes it: use .float()")
    return value.detach().cpu().numpy()
