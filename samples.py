"""What stands for data on the command line: a function, an .npz or .npy file, or a folder of images."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .arrays import as_dtype, choose_arrays, read_arrays
from .ir.errors import UsageError, first_line
from .ir.shapes import TensorSpec
from .sources import Function, is_function, load_function, raised_inside

DATA_FORMS = "expected file.py:function, package.module:function, an .npz or .npy file, or a folder of images"
# Samples in a batch where the model takes any number of them.
BATCH = 16
IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Mean and standard deviation of ImageNet's pixels, with which most torch models were trained.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


class Samples(ABC):
    """Data that was found, and becomes batches when the model's inputs are known."""

    @abstractmethod
    def batches(self, inputs: Sequence[TensorSpec]) -> Iterable:
        """Batches, readable more than once. Raises UsageError where the data does not fit the inputs."""


def open_samples(spec: str, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Samples:
    """The data that `spec` names; `mean` and `std` normalize images, in pixel units, one or one per channel.

    Raises UsageError for a file, folder or function that is not there or cannot be read.
    """
    path = Path(spec)
    if is_function(spec):
        return FunctionSamples(load_function(spec, DATA_FORMS))
    if path.is_dir():
        return ImageSamples.of(path, mean, std)
    if path.suffix in (".npz", ".npy"):
        return ArraySamples(str(path), read_arrays(path))
    what = f"'{spec}' is no data" if path.exists() else f"there is no file or folder '{spec}'"
    raise UsageError("data", what, DATA_FORMS)


@dataclass(frozen=True)
class FunctionSamples(Samples):
    """What a function returns. A generator is started anew for every reading."""

    function: Function

    def batches(self, inputs: Sequence[TensorSpec]) -> Iterable:
        made = self.function()
        if not isinstance(made, Iterable) or isinstance(made, (str, bytes, Mapping)):
            what = f"it returned a {type(made).__name__}"
            raise UsageError(self.function.spec, what, "expected an iterable of batches, such as a DataLoader")
        return (CountedBatches if isinstance(made, Sized) else FunctionBatches)(self.function, made)


class FunctionBatches:
    """Iterates over what a function made; calls it again where its result can be read only once."""

    def __init__(self, function: Function, made: Iterable):
        self._function = function
        self._unread: Iterable | None = made

    def __iter__(self) -> Iterator:
        made = self._function() if self._unread is None else self._unread
        self._unread = None if isinstance(made, Iterator) else made
        try:
            yield from made
        except Exception as error:
            raise raised_inside(self._function.spec, self._function.file, error) from error


class CountedBatches(FunctionBatches):
    """What a function made that knows how many batches it has, as schedules of training ask."""

    def __len__(self) -> int:
        assert isinstance(self._unread, Sized)  # no iterator is: it is never given away
        return len(self._unread)


@dataclass(frozen=True)
class ArraySamples(Samples):
    """Arrays whose first dim counts samples."""

    path: str
    arrays: dict[str, np.ndarray]

    def batches(self, inputs: Sequence[TensorSpec]) -> Iterable:
        chosen = choose_arrays(self.path, self.arrays, [spec.name for spec in inputs])
        tensors = [as_input(self.path, array, spec) for array, spec in zip(chosen, inputs, strict=True)]
        counts = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
        if len(counts) > 1:
            raise UsageError(self.path, f"its arrays hold {sorted(counts)} samples", "expected as many of each input")
        size = batch_size(inputs)
        return list(zip(*(whole_batches(self.path, tensor, size, inputs) for tensor in tensors), strict=True))


@dataclass(frozen=True)
class ImageSamples(Samples):
    """The images below a folder, in the order of their paths."""

    folder: Path
    files: tuple[Path, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def of(folder: Path, mean: Sequence[float], std: Sequence[float]) -> "ImageSamples":
        try:
            import PIL.Image  # noqa: F401 - whether it is there
        except ImportError:
            what = "images cannot be read: Pillow is not installed"
            raise UsageError(str(folder), what, "pip install pillow") from None
        files = tuple(sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES and p.is_file()))
        if not files:
            raise UsageError(str(folder), "the folder holds no images", f"expected {', '.join(IMAGES)}")
        if 0 in std:
            raise UsageError("--std", "0 was given", "expected the spread of pixel values, such as 128")
        return ImageSamples(folder, files, tuple(mean), tuple(std))

    def batches(self, inputs: Sequence[TensorSpec]) -> Iterable:
        shape = inputs[0].shape if len(inputs) == 1 and inputs[0].dtype.is_floating_point else ()
        if len(shape) != 4 or shape[1] not in (1, 3) or not all(isinstance(extent, int) for extent in shape[2:]):
            taken = ", ".join(map(str, inputs))
            raise UsageError(str(self.folder), f"the model takes no images but {taken}", "give an .npz or a function")
        for option, values in (("--mean", self.mean), ("--std", self.std)):
            if len(values) not in (1, shape[1]) and values not in (MEAN, STD):
                what = f"{len(values)} values were given for {shape[1]} channels"
                raise UsageError(option, what, "expected one value, or one per channel")
        size = batch_size(inputs)
        count = len(self.files) // size * size if isinstance(shape[0], int) else len(self.files)
        if not count:
            raise too_few(str(self.folder), len(self.files), size, inputs)
        return ImageBatches(self, inputs[0], size, count)


@dataclass(frozen=True)
class ImageBatches:
    """Reads images batch by batch: cut to the input's aspect ratio around the middle, resized, normalized."""

    samples: ImageSamples
    spec: TensorSpec
    size: int
    count: int

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for start in range(0, self.count, self.size):
            files = self.samples.files[start : min(start + self.size, self.count)]
            yield torch.stack([self._image(file) for file in files]).to(self.spec.dtype)

    def _image(self, file: Path) -> torch.Tensor:
        from PIL import Image, ImageOps

        channels, height, width = (int(extent) for extent in self.spec.shape[1:])
        try:
            with Image.open(file) as image:
                colored = ImageOps.exif_transpose(image).convert("RGB" if channels == 3 else "L")
                fitted = ImageOps.fit(colored, (width, height), Image.Resampling.BILINEAR)
        except Exception as error:  # decoders raise anything on damaged bytes
            what = f"it cannot be read as an image: {first_line(error).rstrip('.')}"
            raise UsageError(str(file), what, "remove or replace it") from error
        pixels = torch.from_numpy(np.array(fitted, np.float32)).reshape(height, width, channels).permute(2, 0, 1)
        return (pixels - _per_channel(self.samples.mean, channels)) / _per_channel(self.samples.std, channels)


def _per_channel(values: Sequence[float], channels: int) -> torch.Tensor:
    """One value for all channels, or one each; those of ImageNet are averaged for a grey image."""
    given = torch.tensor(values, dtype=torch.float32)
    return (given if len(given) in (1, channels) else given.mean().reshape(1)).reshape(-1, 1, 1)


def as_input(where: str, array: np.ndarray, spec: TensorSpec) -> torch.Tensor:
    wanted = str(spec.dtype).removeprefix("torch.")
    if wanted == "bfloat16":
        raise UsageError(where, f"numpy has no dtype for {spec}", "give a function that returns tensors")
    return torch.from_numpy(np.array(as_dtype(where, array, wanted), order="C"))


def batch_size(inputs: Sequence[TensorSpec]) -> int:
    """The model's own batch, or BATCH where it takes any."""
    extent = inputs[0].shape[0] if inputs and inputs[0].shape else 1
    return extent if isinstance(extent, int) else BATCH


def whole_batches(where: str, tensor: torch.Tensor, size: int, inputs: Sequence[TensorSpec]) -> list[torch.Tensor]:
    """Batches of `size`; the rest is a smaller one where the model takes any batch, and left out where it does not."""
    if not tensor.ndim or not len(tensor):
        raise UsageError(where, "it holds no samples", "expected arrays whose first dim counts samples")
    parts = list(tensor.split(size))
    if isinstance(inputs[0].shape[0] if inputs[0].shape else 1, int):
        parts = [part for part in parts if len(part) == size]
    if not parts:
        raise too_few(where, len(tensor), size, inputs)
    return parts


def too_few(where: str, count: int, size: int, inputs: Sequence[TensorSpec]) -> UsageError:
    return UsageError(where, f"it holds {count} samples", f"the model takes {size} at once: {inputs[0]}")
