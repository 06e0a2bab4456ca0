"""What training minimises: the loss, distillation and a regulariser, in one module that many processes can run."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from ...ir.errors import UsageError
from ...ir.graph import Graph
from ..base import Context
from ..loss import scalar_loss
from .batches import Batch
from .distillation import Match, Teacher, feature_loss, find_matches, soft_label_loss
from .frozen_norms import QuantizedNorms
from .grid_biases import GridBiases
from .learned_scales import LearnedScales
from .regularizers import REGULARIZERS, Regularizer
from .training_form import TrainingForm

if TYPE_CHECKING:
    from .finetune import Finetune

AMP_TYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Guidance:
    """What the original model is used for: `alpha` and `temperature` of soft labels, the weight of `features`."""

    teacher: Teacher
    matches: Sequence[Match]
    alpha: float
    temperature: float
    class_dim: int
    features: float


class Objective(torch.nn.Module):
    """(inputs, labels, step) -> the loss. Its parameters are the graph's.

    The loss is computed inside of `forward`, so that DistributedDataParallel sees which weights it depends on. Only
    the models run in the narrow type of `amp`; outputs are turned back before anything is computed from them.
    """

    def __init__(
        self,
        student: TrainingForm,
        task: Callable[[Any, Any], torch.Tensor],
        guidance: Guidance | None = None,
        regularizer: Regularizer | None = None,
        amp: torch.dtype | None = None,
        norms: QuantizedNorms | None = None,
        freeze_after: int = 0,
    ):
        super().__init__()
        self.module = student.module
        self._student, self._task, self._guidance, self._regularizer = student, task, guidance, regularizer
        self._amp = amp
        self._norms, self._freeze_after, self._frozen = norms or QuantizedNorms(), freeze_after, False
        student.freeze(self._norms.alone)

    @staticmethod
    def of(
        graph: Graph,
        options: "Finetune",
        ctx: Context,
        device: torch.device,
        scales: LearnedScales | None = None,
        biases: GridBiases | None = None,
    ) -> "Objective":
        """Raises UsageError where there is no original to learn from, or nothing in it to compare with."""
        guidance = _guidance(graph, options, ctx, device) if options.distill or options.features else None
        compared = [match.student for match in guidance.matches] if guidance else []
        student = TrainingForm(graph, compared, scales=scales, biases=biases)
        make = REGULARIZERS.get(options.regularizer)
        task = _task(options, ctx)
        regularizer, amp = make and make(graph, options, ctx), AMP_TYPES[options.amp]
        norms = QuantizedNorms.of(graph)
        return Objective(student, task, guidance, regularizer, amp, norms, options.freeze_batch_norm)

    def forward(self, inputs: tuple[torch.Tensor, ...], labels: Any, step: int) -> torch.Tensor:
        if step >= self._freeze_after and not self._frozen:
            self._student.freeze(self._norms.folded)
            self._frozen = True
        with self._narrow(inputs):
            mine = self._student(inputs)
        outputs = pytree.tree_map_only(torch.Tensor, _widened, mine.outputs) if self._amp else mine.outputs
        alpha = self._guidance.alpha if self._guidance else 0.0
        terms = []
        if alpha < 1:
            task = self._task(outputs, labels)
            terms.append(task if alpha == 0 else (1 - alpha) * task)
        if (guidance := self._guidance) is not None:
            with self._narrow(inputs):
                wanted = guidance.teacher(inputs)
            if alpha > 0:
                soft = soft_label_loss(outputs, wanted.outputs, guidance.temperature, guidance.class_dim)
                terms.append(alpha * soft)
            if guidance.features > 0:
                terms.append(guidance.features * feature_loss(guidance.matches, mine, wanted))
        if self._regularizer is not None:
            terms.append(self._regularizer(step))
        return sum(terms[1:], terms[0])

    def _narrow(self, inputs: tuple[torch.Tensor, ...]) -> AbstractContextManager:
        return torch.autocast(inputs[0].device.type, self._amp) if self._amp else nullcontext()


def as_loss(model: torch.nn.Module, batch: Batch, step: int, where: str) -> torch.Tensor:
    """The loss of a batch. Raises UsageError for one that fails, is not one number or depends on no weight."""
    loss = scalar_loss(lambda: model(batch.inputs, batch.labels, step), where)
    if not loss.requires_grad:
        raise UsageError(where, "the loss depends on no trainable weight", "expected one that gradients flow through")
    return loss


def _task(options: "Finetune", ctx: Context) -> Callable[[Any, Any], torch.Tensor]:
    if not options.label_smoothing:
        return ctx.loss
    if ctx.loss is not torch.nn.functional.cross_entropy:
        what = "'label-smoothing' is given along with a loss of your own"
        raise UsageError(options.name, what, "it belongs to the default, cross-entropy", "smooth in your loss")
    smoothing = options.label_smoothing
    return lambda outputs, labels: torch.nn.functional.cross_entropy(outputs, labels, label_smoothing=smoothing)


def _guidance(graph: Graph, options: "Finetune", ctx: Context, device: torch.device) -> Guidance:
    if ctx.original is None:
        what = "there is no original model to learn from"
        raise UsageError(options.name, what, "run it in a Pipeline", "or set Context.original to a Graph")
    patterns = options.feature_layers
    matches = find_matches(graph, ctx.original, patterns, options.name) if options.features else []
    teacher = Teacher(ctx.original, matches, device)
    return Guidance(teacher, matches, options.distill, options.temperature, options.class_dim, options.features)


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in AMP_TYPES.values() else tensor
