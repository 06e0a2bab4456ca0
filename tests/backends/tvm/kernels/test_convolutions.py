"""Direct, depthwise and fused convolutions against PyTorch in float64."""

import pytest
import torch
from torch.nn import functional as F

from planish.backends.tvm.kernels import Depthwise, DirectConv, Epilogue, ExpandDepthwise, Window

from .conftest import close


def convolve(x, weight, bias, window: Window, groups: int = 1) -> torch.Tensor:
    top, bottom, left, right = window.padding
    padded = F.pad(x.double(), (left, right, top, bottom))
    return F.conv2d(padded, weight.double(), bias.double(), window.stride, 0, window.dilation, groups)


SAME = Window((3, 3), padding=(1, 1, 1, 1))

# batch, height, width, in, out, window, groups, reads a plain image
DIRECT = {
    "three by three": (1, 7, 7, 32, 48, SAME, 1, False),
    "stride, one-sided padding, odd channels": (2, 9, 11, 20, 40, Window((3, 3), (2, 2), (0, 1, 0, 1)), 1, False),
    "image": (1, 32, 32, 3, 32, Window((3, 3), (2, 2), (0, 1, 0, 1)), 1, True),
    "large window on an image": (2, 30, 29, 3, 24, Window((7, 7), (2, 2), (3, 3, 3, 3)), 1, True),
    "grouped image": (1, 9, 9, 4, 32, SAME, 2, True),
    "dilated groups": (3, 13, 14, 32, 32, Window((3, 3), (1, 1), (2, 2, 2, 2), (2, 2)), 2, False),
    "groups narrower than a vector": (1, 8, 8, 12, 24, SAME, 4, False),
    "depthwise with a multiplier": (1, 8, 8, 12, 24, SAME, 12, False),
    "groups that never fill a vector": (1, 6, 6, 9, 15, SAME, 3, False),
    "one pixel": (1, 1, 1, 20, 40, SAME, 1, False),
    "column window, strided rows": (1, 4, 4, 8, 8, Window((5, 1), (1, 2), (4, 4, 0, 0)), 1, False),
    "strided pointwise": (1, 14, 14, 64, 40, Window((1, 1), (2, 2)), 1, False),
    "more padding than image": (1, 2, 2, 4, 4, Window((3, 3), (1, 1), (3, 3, 3, 3)), 1, False),
    "batch known at run time": (None, 14, 14, 16, 40, Window((3, 3), (2, 2), (1, 1, 1, 1)), 1, False),
}


@pytest.mark.parametrize("case", DIRECT)
def test_direct(runner, case):
    batch, height, width, inputs, outputs, window, groups, image = DIRECT[case]
    x = torch.randn(batch or 3, inputs, height, width)
    weight, bias = torch.randn(outputs, inputs // groups, *window.kernel), torch.randn(outputs)
    added = torch.randn(batch or 3, outputs, *window.output(height, width))
    epilogue = Epilogue("relu", residual="before")
    spec = DirectConv(batch, height, width, inputs, outputs, window, groups, image, epilogue)
    got = runner.images(spec, x, weight, bias, residual=added)
    close(got, F.relu(convolve(x, weight, bias, window, groups) + added), weight[0].numel())


# batch, height, width, channels, window
DEPTHWISE = {
    "three by three": (1, 7, 7, 32, SAME),
    "stride, one-sided padding, odd channels": (2, 9, 11, 20, Window((3, 3), (2, 2), (0, 1, 0, 1))),
    "five by five": (1, 14, 14, 24, Window((5, 5), padding=(2, 2, 2, 2))),
    "five by five, stride": (3, 28, 28, 20, Window((5, 5), (2, 2), (1, 2, 1, 2))),
    "dilated, batch known at run time": (None, 17, 16, 8, Window((3, 3), padding=(2, 2, 2, 2), dilation=(2, 2))),
    "one pixel": (1, 1, 1, 20, SAME),
    "one tap, stride": (1, 9, 9, 16, Window((1, 1), (2, 2))),
    "gaps between windows": (1, 9, 9, 16, Window((2, 3), (3, 3))),
    "a row longer than a tile": (1, 3, 61, 5, SAME),
}


@pytest.mark.parametrize("case", DEPTHWISE)
def test_depthwise(runner, case):
    batch, height, width, channels, window = DEPTHWISE[case]
    x = torch.randn(batch or 3, channels, height, width)
    weight, bias = torch.randn(channels, 1, *window.kernel), torch.randn(channels)
    spec = Depthwise(batch, height, width, channels, window, Epilogue("relu6"))
    wanted = convolve(x, weight, bias, window, channels).clamp(0, 6)
    close(runner.images(spec, x, weight, bias), wanted, weight[0].numel())


@pytest.mark.parametrize("case", DEPTHWISE)
def test_expand_depthwise(runner, case):
    batch, height, width, channels, window = DEPTHWISE[case]
    x = torch.randn(batch or 3, 11, height, width)
    first, first_bias = torch.randn(channels, 11, 1, 1) / 4, torch.randn(channels)
    second, second_bias = torch.randn(channels, 1, *window.kernel), torch.randn(channels)
    spec = ExpandDepthwise(batch, height, width, 11, channels, window, Epilogue("relu6"), Epilogue("clip", (-1.0, 2.0)))
    wide = F.conv2d(x.double(), first.double(), first_bias.double()).clamp(0, 6)
    wanted = convolve(wide, second, second_bias, window, channels).clamp(-1, 2)
    got = runner.images(spec, x, first, first_bias, second, second_bias)
    close(got, wanted, 11 * second[0].numel())


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="12 -> 25 channels in 4 groups; expected groups that divide both"):
        DirectConv(1, 8, 8, 12, 25, SAME, 4)
