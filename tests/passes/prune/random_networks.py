"""Random networks out of the op families: a plan that hypothesis draws and prints, and the module that it stands for.

A block takes the channels that arrive and says how many it hands on. Sizes are tiny and weights are seeded.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

WIDTHS = (4, 6, 8)
LENGTH = 5  # of a sequence; images are 4 x 4


class Block(nn.Module):
    """A function of the value, with layers of its own."""

    def __init__(self, function: Callable[["Block", Tensor], Tensor], **layers: nn.Module):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Held(nn.Module):
    """A bare parameter or buffer as a layer."""

    value: Tensor

    def __init__(self, value: Tensor, is_parameter: bool = True):
        super().__init__()
        if is_parameter:
            self.value = nn.Parameter(value)
        else:
            self.register_buffer("value", value)


@dataclass
class Build:
    """What a block is made with: the channels that arrive, a width, a choice, and those that leave."""

    channels: int
    width: int
    pick: int
    leaves: int = field(default=0)

    def __post_init__(self):
        self.leaves = self.channels

    def divisor(self) -> int:
        """A divisor of the channels above 1."""
        divisors = [d for d in range(2, self.channels + 1) if self.channels % d == 0]
        return divisors[self.pick % len(divisors)]


Maker = Callable[[Build], nn.Module]


def leaving(build: Build, channels: int, module: nn.Module) -> nn.Module:
    build.leaves = channels
    return module


def grouped(build: Build, conv: type[nn.Module], **options) -> nn.Module:
    groups = build.divisor()
    wide = groups * (1 + build.width % 3)
    return leaving(build, wide, conv(build.channels, wide, 3, padding=1, groups=groups, **options))


def depthwise(build: Build, conv: type[nn.Module]) -> nn.Module:
    wide = build.channels * (1 + build.pick % 2)
    return leaving(build, wide, conv(build.channels, wide, 3, padding=1, groups=build.channels))


def shuffled_by_hand(block: Block, x: Tensor, groups: int) -> Tensor:
    b, c, *rest = x.shape
    return x.view(b, groups, c // groups, *rest).transpose(1, 2).reshape(b, c, *rest)


def averaged(x: Tensor) -> Tensor:
    return x.flatten(2).mean(2).view(-1, x.shape[1], *[1] * (x.ndim - 2))


def any_rank(conv: type[nn.Module], transposed: type[nn.Module]) -> dict[str, Maker]:
    """Blocks for values [batch, channels, positions...]."""
    return {**with_layers(conv, transposed), **rearranging()}


def with_layers(conv: type[nn.Module], transposed: type[nn.Module]) -> dict[str, Maker]:
    """Those around convolutions, and what acts on each value."""
    return {
        "conv": lambda b: leaving(b, b.width, conv(b.channels, b.width, 3, padding=1)),
        "dilated conv": lambda b: leaving(b, b.width, conv(b.channels, b.width, 3, padding=2, dilation=2, bias=False)),
        "grouped conv": lambda b: grouped(b, conv),
        "depthwise conv": lambda b: depthwise(b, conv),
        "transposed conv": lambda b: leaving(b, b.width, transposed(b.channels, b.width, 3, padding=1)),
        "grouped transposed conv": lambda b: grouped(b, transposed),
        "group norm": lambda b: nn.GroupNorm(b.divisor(), b.channels),
        "prelu": lambda b: nn.PReLU(b.channels),
        "activations": lambda b: Block(lambda m, x: F.gelu(x) * torch.sigmoid(x) + F.hardswish(x)),
        "residual": lambda b: Block(lambda m, x: m.a(x) + x, a=conv(b.channels, b.channels, 1)),
        "tied": lambda b: Block(lambda m, x: m.a(torch.relu(m.a(x))), a=conv(b.channels, b.channels, 1)),
        "squeeze and excite": lambda b: Block(
            lambda m, x: (
                x * torch.sigmoid(m.b(F.relu(m.a(x.flatten(2).mean(2).view(-1, b.channels, *[1] * (x.ndim - 2))))))
            ),
            a=conv(b.channels, 4, 1),
            b=conv(4, b.channels, 1),
        ),
        "zero-padded shortcut": lambda b: leaving(
            b,
            b.channels + 3,
            Block(
                lambda m, x: m.a(x) + F.pad(x, (0, 0) * (x.ndim - 2) + (1, 2)), a=conv(b.channels, b.channels + 3, 1)
            ),
        ),
        "cat": lambda b: leaving(
            b, b.channels + b.width, Block(lambda m, x: torch.cat([m.a(x), x], 1), a=conv(b.channels, b.width, 1))
        ),
        "stack": lambda b: Block(lambda m, x: torch.stack([x, -2 * x], 1).amax(1)),
        "split": lambda b: Block(lambda m, x: torch.cat(x.split([1, b.channels - 3, 2], 1)[::-1], 1)),
        "gate": lambda b: leaving(b, b.width, Block(lambda m, x: F.glu(m.a(x), 1), a=conv(b.channels, 2 * b.width, 1))),
        "chunk": lambda b: leaving(
            b,
            b.width,
            Block(
                lambda m, x: torch.mul(*m.a(x).chunk(2, 1)) - m.a(x).tensor_split(2, 1)[1],
                a=conv(b.channels, 2 * b.width, 1),
            ),
        ),
    }


def rearranging() -> dict[str, Maker]:
    """Those that take, repeat or move channels."""
    return {
        "slices": lambda b: leaving(b, b.channels + 1, Block(lambda m, x: torch.cat([x[:, 2:], x[:, :3]], 1))),
        "strided slice": lambda b: leaving(b, (b.channels + 1) // 2, Block(lambda m, x: x[:, ::2])),
        "narrow": lambda b: leaving(b, b.channels - 2, Block(lambda m, x: x.narrow(1, 1, b.channels - 2))),
        "repeat": lambda b: leaving(b, 2 * b.channels, Block(lambda m, x: x.repeat(1, 2, *[1] * (x.ndim - 2)))),
        "repeat each": lambda b: leaving(b, 2 * b.channels, Block(lambda m, x: x.repeat_interleave(2, 1))),
        "expand": lambda b: Block(lambda m, x: x.mean(2, keepdim=True).expand_as(x) + x),
        "split dim": lambda b: Block(lambda m, x: x.unflatten(1, (b.divisor(), -1)).mul(2).flatten(1, 2)),
        "shuffle by hand": lambda b: Block(lambda m, x: shuffled_by_hand(m, x, b.divisor())),
        "index select": lambda b: Block(
            lambda m, x: x.index_select(1, m.order.value),
            order=Held(torch.randperm(b.channels, generator=torch.Generator().manual_seed(b.pick)), False),
        ),
        "index": lambda b: leaving(
            b,
            b.channels - 1,
            Block(lambda m, x: x[:, m.order.value], order=Held(torch.arange(b.channels - 1).flip(0), False)),
        ),
        "flip": lambda b: Block(lambda m, x: x.flip(1)),
        "roll": lambda b: Block(lambda m, x: x.roll(1 + b.pick % 3, 1)),
        "unbind": lambda b: leaving(b, 2, Block(lambda m, x: torch.stack([x.unbind(1)[1], x.select(1, -1)], 1))),
        "centred": lambda b: Block(lambda m, x: x - x.mean(1, keepdim=True) / (1 + x.var(1, keepdim=True))),
        "channels last": lambda b: leaving(
            b, b.width, Block(lambda m, x: m.a(x.movedim(1, -1)).movedim(-1, 1), a=nn.Linear(b.channels, b.width))
        ),
        "cropped and padded": lambda b: Block(
            lambda m, x: F.pad(F.pad(x, (1, 0) * (x.ndim - 2)), (-1, 0) * (x.ndim - 2))
        ),
    }


SPATIAL: dict[str, Maker] = {
    **any_rank(nn.Conv2d, nn.ConvTranspose2d),
    "batch norm": lambda b: nn.BatchNorm2d(b.channels),
    "instance norm": lambda b: nn.InstanceNorm2d(b.channels, affine=True, track_running_stats=True),
    "pixel shuffle": lambda b: leaving(
        b,
        b.width,
        Block(lambda m, x: F.avg_pool2d(F.pixel_shuffle(m.a(x), 2), 2), a=nn.Conv2d(b.channels, 4 * b.width, 1)),
    ),
    "pixel unshuffle": lambda b: leaving(
        b, 4 * b.channels, Block(lambda m, x: F.interpolate(F.pixel_unshuffle(x, 2), scale_factor=2, mode="nearest"))
    ),
    "channel shuffle": lambda b: nn.ChannelShuffle(b.divisor()),
    "pools": lambda b: nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.AdaptiveAvgPool2d((4, 4))),
    "grid sample": lambda b: Block(
        lambda m, x: F.grid_sample(x, torch.tanh(m.a(x)).movedim(1, -1), align_corners=False),
        a=nn.Conv2d(b.channels, 2, 1),
    ),
    "norm of channels last": lambda b: Block(
        lambda m, x: m.a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), a=nn.LayerNorm(b.channels)
    ),
}
SIGNAL: dict[str, Maker] = {
    **any_rank(nn.Conv1d, nn.ConvTranspose1d),
    "batch norm": lambda b: nn.BatchNorm1d(b.channels),
    "pool": lambda b: nn.MaxPool1d(3, 1, 1),
}


class Attention(nn.Module):
    """Grouped-query attention: `key_heads` for `heads`, by hand or fused."""

    def __init__(self, wide: int, heads: int, key_heads: int, size: int, by_hand: bool):
        super().__init__()
        self.size, self.by_hand = size, by_hand
        self.query, self.out = nn.Linear(wide, heads * size), nn.Linear(heads * size, wide)
        self.key, self.value = nn.Linear(wide, key_heads * size), nn.Linear(wide, key_heads * size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(2, (-1, self.size)).transpose(1, 2) for p in (self.query, self.key, self.value))
        if self.by_hand:
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
            y = torch.softmax(q @ k.transpose(-1, -2) * self.size**-0.5, -1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])
        return x + self.out(y.transpose(1, 2).flatten(2))


def recurrent(build: Build, kind: type[nn.Module]) -> nn.Module:
    both, layers = bool(build.pick % 2), 1 + build.pick // 2 % 2
    cell = kind(build.channels, build.width, layers, batch_first=True, bidirectional=both)
    return leaving(build, build.width * (1 + both), Block(lambda m, x: m.a(x)[0], a=cell))


# Blocks for values [batch, length, features].
FEATURES: dict[str, Maker] = {
    "linear": lambda b: leaving(b, b.width, nn.Linear(b.channels, b.width)),
    "layer norm": lambda b: nn.LayerNorm(b.channels),
    "rms norm": lambda b: nn.RMSNorm(b.channels),
    "mlp": lambda b: Block(
        lambda m, x: x + m.b(F.gelu(m.a(x))), a=nn.Linear(b.channels, 7), b=nn.Linear(7, b.channels)
    ),
    "attention": lambda b: Attention(b.channels, 2 + 2 * (b.pick % 2), 2, 3, by_hand=False),
    "attention by hand": lambda b: Attention(b.channels, 4, 2 + 2 * (b.pick % 2), 3, by_hand=True),
    "lstm": lambda b: recurrent(b, nn.LSTM),
    "gru": lambda b: recurrent(b, nn.GRU),
    "rnn": lambda b: recurrent(b, nn.RNN),
    "matmul": lambda b: leaving(
        b, b.width, Block(lambda m, x: x @ m.a.value, a=Held(torch.randn(b.channels, b.width)))
    ),
    "einsum": lambda b: leaving(
        b,
        b.width,
        Block(lambda m, x: torch.einsum("blf,gf->blg", x, m.a.value), a=Held(torch.randn(b.width, b.channels))),
    ),
    "gram": lambda b: Block(lambda m, x: torch.bmm(x, torch.bmm(x.mT, m.a(x))), a=nn.Linear(b.channels, b.channels)),
    "tied": lambda b: Block(lambda m, x: m.a(torch.tanh(m.a(x))), a=nn.Linear(b.channels, b.channels)),
    "gate": lambda b: leaving(b, b.width, Block(lambda m, x: F.glu(m.a(x)), a=nn.Linear(b.channels, 2 * b.width))),
    "position": lambda b: Block(lambda m, x: x + m.a.value, a=Held(torch.randn(LENGTH, b.channels))),
    "as a signal": lambda b: leaving(
        b,
        b.width,
        Block(lambda m, x: m.a(x.transpose(1, 2)).transpose(1, 2), a=nn.Conv1d(b.channels, b.width, 3, padding=1)),
    ),
    "cat": lambda b: leaving(
        b, b.channels + b.width, Block(lambda m, x: torch.cat([x, m.a(x)], -1), a=nn.Linear(b.channels, b.width))
    ),
    "slices": lambda b: leaving(b, b.channels - 1, Block(lambda m, x: torch.cat([x[..., 2:], x[..., :1]], -1))),
    "roll": lambda b: Block(lambda m, x: x.roll((1, -1), (1, 2))),
    "flat view": lambda b: leaving(
        b,
        b.width,
        Block(lambda m, x: m.a(x.reshape(-1, b.channels)).view(-1, LENGTH, b.width), a=nn.Linear(b.channels, b.width)),
    ),
}

KINDS: dict[str, tuple[dict[str, Maker], tuple[int, ...], Callable[[int], nn.Module], Callable[[int], nn.Module]]] = {
    "image": (
        SPATIAL,
        (3, 4, 4),
        lambda c: nn.Conv2d(3, c, 1),
        lambda c: nn.Sequential(nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(), nn.Linear(2 * c, 2)),
    ),
    "signal": (SIGNAL, (3, 6), lambda c: nn.Conv1d(3, c, 1), lambda c: nn.Conv1d(c, 2, 1)),
    "sequence": (FEATURES, (LENGTH, 3), lambda c: nn.Linear(3, c), lambda c: nn.Linear(c, 2)),
}


@dataclass(frozen=True)
class Plan:
    """What is drawn: a kind of value, the first width, (family, width, choice) of each block, a seed."""

    kind: str
    width: int
    blocks: tuple[tuple[str, int, int], ...]
    seed: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return KINDS[self.kind][1]

    def families(self) -> set[str]:
        return {name for name, _, _ in self.blocks}

    def build(self) -> nn.Module:
        """The module in eval form, with statistics and scales that differ by channel."""
        makers, _, stem, head = KINDS[self.kind]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            parts, channels = [stem(self.width)], self.width
            for family, width, pick in self.blocks:
                build = Build(channels, width, pick)
                parts.append(makers[family](build))
                channels = build.leaves
            model = nn.Sequential(*parts, head(channels))
            for part in model.modules():
                for name, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
                    if tensor.is_floating_point() and ("running" in name or "Norm" in type(part).__name__):
                        nn.init.uniform_(tensor, 0.5, 1.5)
        return model.eval()


# Families that need so many channels.
LEAST = {"split": 4, "slices": 4, "narrow": 3, "index": 2, "strided slice": 2, "unbind": 2, "roll": 2}
MOST = 24


def fits(kind: str, channels: int, entry: tuple[str, int, int]) -> int:
    """How many channels leave a block, 0 where it cannot stand here."""
    if channels < LEAST.get(entry[0], 2):
        return 0
    build = Build(channels, *entry[1:])
    KINDS[kind][0][entry[0]](build)
    return build.leaves if 2 <= build.leaves <= MOST else 0


@st.composite
def plans(draw: st.DrawFn, blocks: int = 4) -> Plan:
    """Networks of up to `blocks` blocks."""
    kind = draw(st.sampled_from(["image", "signal", "sequence"]))
    width = channels = draw(st.sampled_from(WIDTHS))
    names, chosen = sorted(KINDS[kind][0]), []
    for _ in range(draw(st.integers(2, blocks))):
        entry = draw(st.tuples(st.sampled_from(names), st.sampled_from(WIDTHS), st.integers(0, 3)))
        if leaves := fits(kind, channels, entry):
            chosen.append(entry)
            channels = leaves
    return Plan(kind, width, tuple(chosen), draw(st.integers(0, 3)))


def dealt(kind: str, blocks: int = 3) -> list[Plan]:
    """Every family of a kind in one network, dealt out like cards, the same in every run."""
    rng = np.random.default_rng(0)
    names, plans = rng.permutation(sorted(KINDS[kind][0])).tolist(), []
    while names:
        width = channels = WIDTHS[len(plans) % len(WIDTHS)]
        chosen = []
        for name in list(names):
            entry = (name, int(rng.choice(WIDTHS)), int(rng.integers(4)))
            if len(chosen) < blocks and (leaves := fits(kind, channels, entry)):
                chosen.append(entry)
                channels = leaves
                names.remove(name)
        plans.append(Plan(kind, width, tuple(chosen), len(plans)))
    return plans
