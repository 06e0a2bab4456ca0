"""What happens to a finished value before it is stored, as small hashable values."""

from __future__ import annotations

from dataclasses import dataclass


def check_word(where: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{where}: {value!r} is unknown; expected one of {', '.join(map(repr, allowed))}.")


ACTIVATION_NAMES = ("relu", "relu6", "clip", "hardswish", "hardsigmoid", "sigmoid", "silu", "tanh", "gelu")


@dataclass(frozen=True)
class Epilogue:
    """What happens to a finished value before it is stored.

    `activation` is one of ACTIVATION_NAMES; "clip" takes its `bounds`. `residual` adds a tensor of the output's shape
    "before" the activation or "after" it. Raises ValueError for other names.
    """

    activation: str | None = None
    bounds: tuple[float, float] | None = None
    residual: str | None = None

    def __post_init__(self) -> None:
        check_word("epilogue activation", self.activation, (None, *ACTIVATION_NAMES))
        check_word("epilogue residual", self.residual, (None, "before", "after"))
        if (self.activation == "clip") != (self.bounds is not None):
            raise ValueError(f"epilogue bounds: {self.bounds} with {self.activation!r}; expected for 'clip' only.")


@dataclass(frozen=True)
class Requantize:
    """What happens to int32 sums: they become 8-bit integers, to which others may be added.

    With `residual` the integers of a tensor of the output's shape, on a grid of their own, are added. All numbers
    (zero points, ends, factors) are arguments of the kernel, so that layers of one shape share it. `small`: the weights
    prove that every sum lies within 22 bits and a sign, or else beyond the ends of its grid (`requantize.start`), and
    that every step that it makes, with the residual too, lies within int16. `saturates`: the ends of the grid that is
    stored are those of the bytes, so that it is enough to saturate. `even`: of small sums, that the zero point of that
    grid is even: it may be added before a step is rounded, and a tie goes to the same side. `whole`: the factors of the
    addition are whole numbers times a power of two (`Addition.whole`), and its steps lie within int16. `bounded`: every
    factor is below 1, so that no sum leaves int32 when it is multiplied.
    """

    residual: str | None = None
    small: bool = False
    saturates: bool = False
    even: bool = False
    whole: bool = False
    bounded: bool = False

    def __post_init__(self) -> None:
        check_word("requantize residual", self.residual, (None, "after"))


@dataclass(frozen=True)
class Dequantize:
    """int32 sums become float32."""

    residual: None = None


Finish = Epilogue | Requantize | Dequantize
NO_EPILOGUE = Epilogue()  # values are stored as they are
REQUANTIZE = Requantize()
