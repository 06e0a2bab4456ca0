"""One step of an optimizer: gradients of one or more batches, checked, clipped and applied."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from ...ir.errors import UsageError
from .batches import Batch
from .learned_scales import LearnedScales
from .objective import Objective, as_loss
from .processes import Processes

if TYPE_CHECKING:
    from .finetune import Finetune

ADVICE = "lower 'lr', set 'clip', or check the data"


class Stepper:
    """Steps of one training run.

    keep    (weight, mask) of sparse weights: outside of the mask gradient and weight stay zero
    scales  of quantizers that are trained too: the graph's are brought up to date after each step
    scaler  of the loss, so that small gradients survive fp16; it does nothing for other types
    """

    def __init__(
        self,
        processes: Processes,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        parameters: Mapping[str, torch.nn.Parameter],
        keep: Sequence[tuple[torch.Tensor, torch.Tensor]],
        options: "Finetune",
        scales: LearnedScales | None = None,
    ):
        self.scales = scales
        self.processes, self.optimizer, self.parameters, self.keep = processes, optimizer, parameters, keep
        self.model = processes.wrap(objective)
        self.clip = options.clip
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=options.amp == "fp16")

    def __call__(self, window: Sequence[Batch], rate: float, step: int, place: str) -> float:
        """One step on the mean loss of a window of batches, over all processes; returns that loss.

        Raises UsageError for a loss or a gradient that is NaN or infinite. With fp16 an infinite gradient lowers the
        scale and skips the step instead.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        total = 0.0
        for count, batch in enumerate(window, start=1):
            together = nullcontext() if count == len(window) else self.processes.unsynchronized(self.model)
            with torch.enable_grad(), together:
                loss = as_loss(self.model, batch, step, place)
                shown = float(self.processes.mean(loss.detach()))
                if not torch.isfinite(torch.tensor(shown)):
                    raise UsageError(place, f"the loss is {shown:g}", ADVICE)
                self.scaler.scale(loss / len(window)).backward()
            total += shown
        self._apply(place)
        return total / len(window)

    @torch.no_grad()
    def _apply(self, place: str) -> None:
        self.scaler.unscale_(self.optimizer)
        for weight, mask in self.keep:
            if weight.grad is not None:
                weight.grad.mul_(mask)
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not self.scaler.is_enabled() and not bool(torch.isfinite(norm)):
            raise UsageError(place, f"the gradient of {self._culprit()} is NaN or infinite", ADVICE)
        if self.clip:
            torch.nn.utils.clip_grads_with_norm_(list(self.parameters.values()), self.clip, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for weight, mask in self.keep:
            weight.mul_(mask)
        if self.scales is not None:
            self.scales.write()

    def _culprit(self) -> str:
        for name, parameter in self.parameters.items():
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                return f"weight '{name}'"
        return "all weights together"
