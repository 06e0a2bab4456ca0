"""Every rule and every refit, broken on purpose: the proof or the verifier catches each mistake, whatever goes.

A mistake is made around the right rule: its result comes out reversed or shifted by one, or it forgets to tie, relate,
freeze, mix or contract. A new rule without a row here fails the test.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_networks import Attention, Block, Held, Plan
from torch import nn

from planish.ir.capture import capture
from planish.ir.errors import VerifyError
from planish.passes.prune.index.rules import REFITS, RULES

# --- mistakes


def changed(new: Callable) -> Callable:
    """The rule's result with every dim that can lose indices changed."""

    def mistake(rule):
        def wrong(index, node, call):
            result = rule(index, node, call)
            several = bool(result) and isinstance(result[0], list)
            tensors = result if several else [result]
            tensors = [[dim if index.is_fixed(dim) else new(dim) for dim in dims] for dims in tensors]
            return tensors if several else tensors[0]

        return wrong

    return mistake


def forgotten(method: str) -> Callable:
    """The rule without what it says through one method."""

    def mistake(rule):
        def wrong(index, node, call):
            setattr(index, method, lambda *args, **options: None)
            try:
                return rule(index, node, call)
            finally:
                delattr(index, method)

        return wrong

    return mistake


reversed_ = changed(lambda dim: dim[::-1])
shifted = changed(lambda dim: np.roll(dim, 1))


def free(rule):
    """Indices of its own for the result, as if it were anything."""
    return lambda index, node, call: index.new([len(dim) for dim in rule(index, node, call)])


# --- models


def image(function, read: int = 8, **layers: nn.Module):
    """A conv that makes 8 channels, the op, a conv that reads."""
    whole = nn.Sequential(nn.Conv2d(3, 8, 1), Block(function, **layers), nn.Conv2d(read, 2, 1))
    return lambda: (whole, torch.randn(2, 3, 4, 4))


def sequence(function, read: int = 8, **layers: nn.Module):
    return lambda: (nn.Sequential(nn.Linear(3, 8), Block(function, **layers), nn.Linear(read, 2)), torch.randn(2, 5, 3))


def flat(function, read: int = 8, **layers: nn.Module):
    return lambda: (nn.Sequential(nn.Linear(3, 8), Block(function, **layers), nn.Linear(read, 2)), torch.randn(2, 3))


def network(kind: str, family: str, width: int = 6, pick: int = 0):
    plan = Plan(kind, 8, ((family, width, pick),), 0)
    return lambda: (plan.build(), torch.randn(2, *plan.shape))


class Quantized(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.after = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.scale, self.zero = Held(torch.rand(8) * 0.01 + 0.01, False), Held(torch.zeros(8, dtype=torch.int32), False)

    def forward(self, x):
        weight = torch.fake_quantize_per_channel_affine(
            self.conv.weight, self.scale.value, self.zero.value, 0, -127, 127
        )
        return self.after(F.conv2d(x, weight, self.conv.bias))


MODELS = {
    "attention": network("sequence", "attention"),
    "one head": lambda: (Attention(3, 1, 1, 6, by_hand=False), torch.randn(2, 5, 3)),
    "softmax": image(lambda m, x: torch.softmax(x, 1)),
    "stack": image(lambda m, x: torch.stack([x, m.a(x)], 2).amax(2), a=nn.Conv2d(8, 8, 1)),
    "strided slice": image(lambda m, x: x[:, ::2], 4),
    "select": image(lambda m, x: x.select(3, 0).unsqueeze(3)),
    "select channels": image(lambda m, x: x * sum(x.select(1, i).unsqueeze(1) for i in (0, 2, 5, 7))),
    "unbind": image(lambda m, x: x.unbind(3)[1].unsqueeze(3)),
    "residual": image(lambda m, x: x + m.a(x), a=nn.Conv2d(8, 8, 1)),
    "dropout": image(lambda m, x: F.dropout(x, 0.5, m.training)),
    "clone": image(lambda m, x: x.clone()),
    "arange": sequence(lambda m, x: x + torch.arange(8.0)),
    "tril": sequence(lambda m, x: x.tril()),
    "zeros": image(lambda m, x: x + torch.full((8, 1, 1), 0.5)),
    "fake quantize": lambda: (Quantized(), torch.randn(2, 3, 4, 4)),
    "bilinear": sequence(lambda m, x: m.a(x, torch.tanh(m.b(x))), 6, a=nn.Bilinear(8, 7, 6), b=nn.Linear(8, 7)),
    "addmm": flat(lambda m, x: torch.addmm(m.a.bias, x, m.a.weight.t()), 6, a=nn.Linear(8, 6)),
    "embedding": lambda: (nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 2)), torch.randint(0, 11, (2, 5))),
    "meshgrid": flat(
        lambda m, x: torch.stack(torch.meshgrid(m.a.value, m.b.value, indexing="ij"), 0).amax(0) + x.unsqueeze(1),
        a=Held(torch.randn(5)),
        b=Held(torch.randn(8)),
    ),
    "weight norm": lambda: (
        nn.Sequential(nn.Conv1d(3, 8, 1), torch.nn.utils.weight_norm(nn.Conv1d(8, 6, 3)), nn.Conv1d(6, 2, 1)),
        torch.randn(2, 3, 5),
    ),
    "average": image(lambda m, x: x - x.mean(1, keepdim=True)),
    "pool": image(lambda m, x: x.mean(3, keepdim=True)),
    "cosine": sequence(lambda m, x: x * F.cosine_similarity(x, m.a(x), -1).unsqueeze(-1), a=nn.Linear(8, 8)),
    "permute": image(lambda m, x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2)),
    "transpose": sequence(lambda m, x: x.transpose(1, 2).transpose(1, 2)),
    "expand": image(lambda m, x: x.mean((2, 3), keepdim=True).expand(-1, 8, 4, 4)),
    "flatten": image(lambda m, x: x.flatten(1).view(-1, 128, 1, 1), 128),
    "reshape": image(lambda m, x: x.reshape(-1, 128, 1, 1), 128),
    "roll": image(lambda m, x: x.roll(3, 1)),
    "grouped transposed conv": network("image", "grouped transposed conv", width=8),
    "group norm, a group a channel": image(lambda m, x: m.a(x), a=nn.GroupNorm(8, 8)),
    "split dim in four": network("image", "split dim", pick=1),
    "pad": network("image", "zero-padded shortcut"),
    **{
        name: network("image", name)
        for name in (
            "cat",
            "split",
            "narrow",
            "slices",
            "index select",
            "index",
            "flip",
            "conv",
            "grouped conv",
            "depthwise conv",
            "transposed conv",
            "gate",
            "batch norm",
            "group norm",
            "prelu",
            "grid sample",
            "pools",
            "channels last",
            "repeat",
            "repeat each",
            "pixel shuffle",
            "pixel unshuffle",
            "channel shuffle",
            "split dim",
        )
    },
    **{
        name: network("sequence", name)
        for name in ("linear", "matmul", "einsum", "layer norm", "rms norm", "lstm", "gru")
    },
}

# rule -> (mistake, model), ...
WRONG = {
    "attention": [(forgotten("relate"), "attention"), (reversed_, "attention")],
    "over_one_dim": [(forgotten("freeze"), "softmax")],
    "concatenate": [(reversed_, "cat"), (shifted, "cat")],
    "stack": [(forgotten("align"), "stack"), (reversed_, "stack")],
    "split": [(reversed_, "split"), (shifted, "split")],
    "take_range": [(shifted, "narrow"), (reversed_, "strided slice")],
    "select": [(reversed_, "select"), (forgotten("freeze"), "select channels")],
    "unbind": [(shifted, "unbind")],
    "choose": [(reversed_, "index select")],
    "reverse": [(reversed_, "flip")],
    "roll": [(shifted, "roll")],
    "pad": [(reversed_, "pad"), (shifted, "pad")],
    "convolution": [(reversed_, "conv"), (forgotten("contract"), "conv"), (forgotten("relate"), "grouped conv")],
    "transposed_convolution": [
        (shifted, "transposed conv"),
        (reversed_, "grouped transposed conv"),
        (forgotten("relate"), "grouped transposed conv"),
        (forgotten("contract"), "transposed conv"),
    ],
    "pointwise": [(forgotten("tie"), "residual"), (shifted, "residual")],
    "drop": [(reversed_, "dropout")],
    "copy": [(shifted, "clone")],
    "gated": [(forgotten("tie"), "gate"), (reversed_, "gate")],
    "enumerated": [(free, "arange")],
    "triangle": [(forgotten("freeze"), "tril")],
    "fake_quantize": [(forgotten("tie"), "fake quantize"), (reversed_, "fake quantize")],
    "linear": [(forgotten("tie"), "linear"), (forgotten("contract"), "linear"), (shifted, "linear")],
    "matrix_product": [(forgotten("tie"), "matmul"), (forgotten("contract"), "matmul"), (forgotten("align"), "addmm")],
    "einsum": [(forgotten("tie"), "einsum"), (reversed_, "einsum")],
    "bilinear": [(forgotten("tie"), "bilinear"), (forgotten("contract"), "bilinear"), (reversed_, "bilinear")],
    "embedding": [(reversed_, "embedding"), (shifted, "embedding")],
    "grid": [(forgotten("freeze"), "meshgrid")],
    "advanced_index": [(reversed_, "index")],
    "per_channel": [(forgotten("tie"), "batch norm"), (forgotten("tie"), "prelu"), (shifted, "batch norm")],
    "over_last_dims": [
        (forgotten("mix"), "layer norm"),
        (forgotten("align"), "rms norm"),
        (reversed_, "layer norm"),
    ],
    "weight_norm": [(reversed_, "weight norm")],
    "over_groups": [(forgotten("relate"), "group norm"), (forgotten("mix"), "group norm"), (shifted, "group norm")],
    "spatial": [(reversed_, "pools")],
    "sample": [(reversed_, "grid sample"), (forgotten("freeze"), "grid sample")],
    "reduce": [(forgotten("mix"), "average"), (reversed_, "pool")],
    "similarity": [(forgotten("mix"), "cosine"), (forgotten("align"), "cosine")],
    "recurrent": [(forgotten("relate"), "lstm"), (forgotten("tie"), "gru"), (forgotten("contract"), "lstm")],
    "reshape": [(reversed_, "flatten"), (shifted, "flatten"), (forgotten("relate"), "split dim")],
    "permute": [(reversed_, "permute")],
    "move": [(shifted, "channels last")],
    "transpose": [(reversed_, "transpose")],
    "expand": [(shifted, "expand")],
    "repeat": [(reversed_, "repeat")],
    "repeat_each": [(reversed_, "repeat each"), (shifted, "repeat each")],
    "move_to_space": [(shifted, "pixel shuffle"), (reversed_, "pixel unshuffle")],
    "channel_shuffle": [(reversed_, "channel shuffle")],
}
# refit -> a model in which it has something to write
MISSING = {
    "scale": "one head",
    "split_sizes": "split",
    "range_bounds": "narrow",
    "selected": "select channels",
    "chosen": "index select",
    "shifts": "roll",
    "pad_widths": "pad",
    "groups": "depthwise conv",
    "constant_size": "zeros",
    "index_by_position": "index",
    "normalized_shape": "layer norm",
    "num_groups": "group norm, a group a channel",
    "view_size": "flatten",
    "reshape_size": "reshape",
    "unflatten_sizes": "split dim in four",
    "expand_size": "expand",
    "shuffle_by_index": "channel shuffle",
}
# A constant has the same number everywhere, so that only its extents can be wrong: by its refit.
NO_MAP = {"constant"}


@cache
def captured(name: str):
    torch.manual_seed(0)
    model, x = MODELS[name]()
    return capture(model.eval(), x)


def example(name: str):
    return captured(name).copy()


def names_of(table, function: str) -> list[str]:
    return [op for op, entry in table.items() if entry.__name__ == function]


def test_every_rule_and_refit_has_a_mistake():
    assert {rule.__name__ for rule in RULES.values()} == WRONG.keys() | NO_MAP
    assert {refit.__name__ for refit in REFITS.values()} == MISSING.keys()


@pytest.mark.parametrize("name", MODELS)
def test_the_right_rules_pass(name, cut_at_random):
    done = [cut_at_random(example(name), seed) for seed in (0, 1)]
    assert all(not cut.index.fenced for cut in done)
    assert max(cut.error for cut in done) <= 1e-9


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("rule", "number"),
    [(rule, number) for rule, rows in WRONG.items() for number in range(len(rows))],
)
def test_a_wrong_rule_is_caught(rule, number, seed, cut_at_random, monkeypatch):
    mistake, model = WRONG[rule][number]
    for op in names_of(RULES, rule):
        monkeypatch.setitem(RULES, op, mistake(RULES[op]))
    with pytest.raises(VerifyError):
        cut_at_random(example(model), seed)


@pytest.mark.parametrize("refit", MISSING)
def test_a_missing_refit_is_caught(refit, cut_at_random, monkeypatch):
    for op in names_of(REFITS, refit):
        monkeypatch.delitem(REFITS, op)
    with pytest.raises(VerifyError):
        cut_at_random(example(MISSING[refit]), 0)
