"""Knowledge distillation: the unpruned model's outputs, and what its layers make, as targets for the pruned one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.nn import functional
from torch.utils import _pytree as pytree

from ...ir.errors import UsageError
from ...ir.graph import Graph
from ...ir.ops import WEIGHTED_PRODUCTS, is_op
from ..quantize.rules import stored_weight
from ..selectors import select
from .training_form import TrainingForm, Values


@dataclass(frozen=True)
class Match:
    """A layer whose output is compared. thinned: the dim of its channels where the student has fewer, else None."""

    layer: str
    student: fx.Node
    teacher: fx.Node
    thinned: int | None = None


class Teacher:
    """The original model in eval form; it learns nothing and is not changed."""

    def __init__(self, original: Graph, matches: Sequence[Match], device: torch.device):
        devices = {weight.device for weight in original.weights.values()}
        if devices - {device}:  # moving it would move the caller's model
            twins = dict(zip(original.nodes, (original := original.copy()).nodes, strict=True))
            matches = [Match(m.layer, m.student, twins[m.teacher], m.thinned) for m in matches]
            original.module.to(device)
        self._form = TrainingForm(original, [match.teacher for match in matches], training=False)

    @torch.no_grad()
    def __call__(self, inputs: Iterable[torch.Tensor]) -> Values:
        return self._form(inputs)


def soft_label_loss(student: Any, teacher: Any, temperature: float, dim: int) -> torch.Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of the models' first outputs, averaged over all but `dim`.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015. T^2 keeps the size of the gradients
    as T changes.
    """
    scaled = (pytree.tree_leaves(outputs)[0].float() / temperature for outputs in (student, teacher))
    mine, wanted = (functional.log_softmax(logits, dim) for logits in scaled)
    divergence = functional.kl_div(mine, wanted, log_target=True, reduction="none").sum(dim)
    return temperature**2 * divergence.mean()


def feature_loss(matches: Sequence[Match], student: Values, teacher: Values) -> torch.Tensor:
    """The mean over layers of how far the student's output is from the teacher's.

    Same shape: the mean squared error (Romero et al., "FitNets", ICLR 2015). Fewer channels: the squared distance of
    the attention maps (Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017), which channels that
    are gone leave comparable; so no regressor has to be trained along.
    """
    pairs = zip(matches, student.inner, teacher.inner, strict=True)
    losses = [
        functional.mse_loss(mine.float(), wanted.float())
        if match.thinned is None
        else (attention_map(mine, match.thinned) - attention_map(wanted, match.thinned)).square().sum(1).mean()
        for match, mine, wanted in pairs
    ]
    return torch.stack(losses).mean()


def attention_map(value: torch.Tensor, channels: int) -> torch.Tensor:
    """[batch, positions]: the mean square over channels at each position, of unit length for each example."""
    return functional.normalize(value.float().square().mean(channels).flatten(1), dim=1)


def find_matches(student: Graph, teacher: Graph, patterns: Sequence[str], where: str) -> list[Match]:
    """The layers that both models have and whose outputs can be compared, those that patterns mean if any are given.

    Raises UsageError where batch norms were folded in one of them only, where there is no such layer, and for a
    pattern that means none.
    """
    if ("no-batch-norm" in student.properties) != ("no-batch-norm" in teacher.properties):
        what = "'features' compares layers, and batch norms were folded into those of one model"
        raise UsageError(where, what, "put 'finetune' before 'fold-batch-norm'", "or fold those of Context.original")
    wanted, mine = _layers(teacher), _layers(student)
    found = [_match(name, mine[name], wanted[name]) for name in mine if name in wanted]
    matches = {match.layer: match for match in found if match is not None}
    if not matches:
        what = "no layer makes a value that can be compared with the original's"
        raise UsageError(where, what, "channels of vectors were cut; use 'distill' alone")
    chosen = select(matches, patterns, where, "feature-layers") if patterns else matches
    return [matches[name] for name in chosen]


def _layers(graph: Graph) -> dict[str, fx.Node]:
    """The first call of each layer, by the name of its weight, which may be quantized."""
    found: dict[str, fx.Node] = {}
    for node in graph.calls(*WEIGHTED_PRODUCTS):
        if (weight := stored_weight(node)) is not None:
            found.setdefault(str(weight.target), node)
    return found


def _match(name: str, student: fx.Node, teacher: fx.Node) -> Match | None:
    mine, wanted = student.meta["val"].shape, teacher.meta["val"].shape
    if len(mine) != len(wanted):
        return None
    differing = [i for i, (a, b) in enumerate(zip(mine, wanted, strict=True)) if _is_fixed(a, b) and a != b]
    if not differing:
        return Match(name, student, teacher)
    channels = len(mine) - 1 if is_op(student, "linear") else 1
    return Match(name, student, teacher, channels) if differing == [channels] and len(mine) > 2 else None


def _is_fixed(a: Any, b: Any) -> bool:
    """Both extents are numbers; a symbolic one is the batch or a length of the input, which both models share."""
    return isinstance(a, int) and isinstance(b, int)
