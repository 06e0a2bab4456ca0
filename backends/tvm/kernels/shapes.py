"""What a kernel computes, as small hashable values: equal specs (and equal arithmetic) share one compiled kernel.

Packed activations are `[N, H, W, Cp]` with Cp = channels rounded up to the lanes of a vector. The padding lanes hold
arbitrary finite values. `batch=None` leaves the leading dimension to run time. Heights and widths are the input's.
`parts`: where the input lies in several maps, side by side along channels, the channels of each; () where it is one.
"""

from __future__ import annotations

from dataclasses import dataclass

from .epilogues import NO_EPILOGUE, REQUANTIZE, Epilogue, Finish, Requantize, check_word


def round_up(n: int, multiple: int) -> int:
    """The least multiple that is not below n."""
    return -(-n // multiple) * multiple


@dataclass(frozen=True)
class Window:
    """A sliding window. Padding is (top, bottom, left, right) in pixels."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def taps(self) -> int:
        """Elements of the window."""
        return self.kernel[0] * self.kernel[1]

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result."""
        top, bottom, left, right = self.padding
        reach = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        rows, columns = height + top + bottom - reach[0], width + left + right - reach[1]
        return rows // self.stride[0] + 1, columns // self.stride[1] + 1


@dataclass(frozen=True)
class Map:
    """What works on one packed map; height, width and channels are those of the input."""

    batch: int | None
    height: int
    width: int
    channels: int


@dataclass(frozen=True)
class Pointwise:
    """A 1x1 convolution with stride 1 (other strides: DirectConv)."""

    batch: int | None
    height: int
    width: int
    in_channels: int
    out_channels: int
    epilogue: Finish = NO_EPILOGUE
    parts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Dense:
    """A linear layer on plain tensors: [rows, in_features] -> [rows, out_features]."""

    rows: int | None
    in_features: int
    out_features: int
    epilogue: Finish = NO_EPILOGUE


@dataclass(frozen=True)
class DirectConv:
    """A convolution of any window and grouping. With `image` the input is plain NCHW.

    bordered: the padding of an integer input stands for a zero point that is not 0 in memory, so that outputs whose
    window leaves the image have biases of their own.

    Raises ValueError if the groups do not divide the channels.
    """

    batch: int | None
    height: int
    width: int
    in_channels: int
    out_channels: int
    window: Window
    groups: int = 1
    image: bool = False
    epilogue: Finish = NO_EPILOGUE
    bordered: bool = False
    parts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.in_channels % self.groups or self.out_channels % self.groups:
            channels = f"{self.in_channels} -> {self.out_channels} channels in {self.groups} groups"
            raise ValueError(f"direct convolution: {channels}; expected groups that divide both.")


@dataclass(frozen=True)
class TransposedConv:
    """A transposed convolution of one group. Padding is cut from the output's border, (vertical, horizontal) pixels.

    output: height and width of the result; bordered: as in DirectConv.
    """

    batch: int | None
    height: int
    width: int
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    output: tuple[int, int]
    epilogue: Finish = NO_EPILOGUE
    bordered: bool = False

    @property
    def phases(self) -> int:
        """Outputs per pixel of the input."""
        return self.stride[0] * self.stride[1]


@dataclass(frozen=True)
class Winograd:
    """A convolution of one group in floats, `tile` x `tile` outputs at a time.

    padding: (top, bottom, left, right) in pixels; kernel, stride: of both directions. With `image` the input is plain
    NCHW, of a known batch. With `fresh` weights lie in memory as they are, and are transformed while the kernel runs:
    for a stride of 1, and input channels in whole vectors, of a known batch.
    """

    batch: int | None
    height: int
    width: int
    in_channels: int
    out_channels: int
    padding: tuple[int, int, int, int]
    tile: int
    epilogue: Epilogue = NO_EPILOGUE
    kernel: int = 3
    stride: int = 1
    image: bool = False
    fresh: bool = False
    parts: tuple[int, ...] = ()


@dataclass(frozen=True)
class IntegerWinograd:
    """A convolution of one group in integers: 3x3, or 7x7 with a stride of 2; 4 x 4 or 3 x 3 outputs at a time.

    padding: (top, bottom, left, right) in pixels; wide: for sums from 2**25 to 2**29, which its weights must prove
    (`winograd_integer_choice`).
    """

    batch: int | None
    height: int
    width: int
    in_channels: int
    out_channels: int
    padding: tuple[int, int, int, int]
    epilogue: Requantize = REQUANTIZE
    kernel: int = 3
    stride: int = 1
    wide: bool = False
    parts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Depthwise(Map):
    """A depthwise convolution with channel multiplier 1. `bordered` as in DirectConv."""

    window: Window
    epilogue: Finish = NO_EPILOGUE
    bordered: bool = False


@dataclass(frozen=True)
class ExpandDepthwise:
    """A 1x1 convolution from `in_channels` to `channels` and the depthwise convolution that alone reads it.

    `expand` is the 1x1's epilogue (without a residual). `bordered` as in DirectConv, of the depthwise convolution.
    """

    batch: int | None
    height: int
    width: int
    in_channels: int
    channels: int
    window: Window
    expand: Finish = NO_EPILOGUE
    epilogue: Finish = NO_EPILOGUE
    bordered: bool = False


@dataclass(frozen=True)
class GlobalMean(Map):
    """The mean over height and width: [N, H, W, Cp] -> [N, 1, 1, Cp]. Integers are summed, then requantized."""

    epilogue: Finish = NO_EPILOGUE


@dataclass(frozen=True)
class Pool(Map):
    """Max or mean over a sliding window (`mode`); `count_padding` lets padded pixels count in the mean's divisor.

    Integers are summed, then requantized; what falls on padding counts as the zero point.
    """

    window: Window
    mode: str
    count_padding: bool = True
    epilogue: Finish = NO_EPILOGUE
    bordered: bool = False

    def __post_init__(self) -> None:
        check_word("pool mode", self.mode, ("max", "mean"))


@dataclass(frozen=True)
class Binary(Map):
    """`operation` ("add" or "mul") of two packed tensors; with `per_channel` the second is [N, 1, 1, Cp]."""

    operation: str
    per_channel: bool = False
    epilogue: Epilogue = NO_EPILOGUE

    def __post_init__(self) -> None:
        check_word("elementwise operation", self.operation, ("add", "mul"))


@dataclass(frozen=True)
class Unary(Map):
    """An activation on its own."""

    epilogue: Epilogue


@dataclass(frozen=True)
class IntegerAdd(Map):
    """The sum of two packed integer tensors with grids of their own; with `per_channel` the second is [N, 1, 1, Cp]."""

    per_channel: bool = False


@dataclass(frozen=True)
class IntegerMul(Map):
    """The product of two packed integer tensors, requantized; with `per_channel` the second is [N, 1, 1, Cp]."""

    per_channel: bool = False


@dataclass(frozen=True)
class Lookup(Map):
    """A table of 256 bytes, looked up for every byte of a packed tensor."""


@dataclass(frozen=True)
class ToIntegers(Map):
    """Plain float32 NCHW, quantized to packed bytes."""


@dataclass(frozen=True)
class ToFloat(Map):
    """Packed bytes to packed float32."""


@dataclass(frozen=True)
class ToPacked(Map):
    """Plain NCHW to packed NHWCp."""


@dataclass(frozen=True)
class ToPlain(Map):
    """Packed NHWCp to plain NCHW."""


Spec = (
    Pointwise | Dense | DirectConv | Winograd | IntegerWinograd | TransposedConv | Depthwise | ExpandDepthwise
    | GlobalMean | Pool | Binary | Unary | ToPacked | ToPlain
    | IntegerAdd | IntegerMul | Lookup | ToIntegers | ToFloat
)  # fmt: skip

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Signature:
    """Shapes of a kernel's parameters in call order: inputs, weights, residual, output. None is the run-time batch.

    activation: dtype of inputs and residual; result: of the output; weight_dtypes: one for each weight.
    """

    inputs: tuple[Shape, ...]
    weights: tuple[Shape, ...]
    residual: Shape | None
    output: Shape
    activation: str = "float32"
    result: str = "float32"
    weight_dtypes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.weight_dtypes:
            object.__setattr__(self, "weight_dtypes", ("float32",) * len(self.weights))

    def parameters(self) -> list[tuple[Shape, str]]:
        """(shape, dtype) of every parameter, in call order."""
        residual = [(self.residual, self.activation)] if self.residual else []
        weights = zip(self.weights, self.weight_dtypes, strict=True)
        return [*((shape, self.activation) for shape in self.inputs), *weights, *residual, (self.output, self.result)]
