"""The backend of `torch.compile(model, backend="planish")`: regions that we can build go to TVM."""

from .backend import SETTLED_CALLS, Options, planish_backend

__all__ = ["SETTLED_CALLS", "Options", "planish_backend"]
