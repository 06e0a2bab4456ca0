"""The user's loss on one batch, checked."""

from collections.abc import Callable
from typing import Any

import torch

from ..ir.errors import PlanishError, UsageError, first_line


def scalar_loss(compute: Callable[[], Any], where: str) -> torch.Tensor:
    """compute() as a scalar tensor. Raises UsageError for a loss that fails or is not one number."""
    try:
        value = compute()
    except PlanishError:
        raise
    except Exception as error:
        what = f"the loss fails: {type(error).__name__}: {first_line(error)}"
        raise UsageError(where, what, "expected labels that fit loss(outputs, labels)") from error
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        shape = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise UsageError(where, f"the loss is {shape}", "expected a tensor with one number")
    return value.reshape(())


def loss_of(loss: Callable[[Any, Any], torch.Tensor], outputs: Any, labels: Any, where: str) -> torch.Tensor:
    """loss(outputs, labels) as a scalar tensor. Raises UsageError also for one that is not finite."""
    value = scalar_loss(lambda: loss(outputs, labels), where)
    if not bool(torch.isfinite(value)):
        what = f"the loss is {float(value.detach()):g}"
        raise UsageError(where, what, "check the labels, the data's range and the weights")
    return value
