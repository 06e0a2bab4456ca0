"""Compensation of a cut with unlabelled data: biases, least-squares reconstruction, batch-norm statistics."""

from .compensation import METHODS, check_methods, compensate

__all__ = ["METHODS", "check_methods", "compensate"]
