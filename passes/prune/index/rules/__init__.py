"""One file per op family; importing this package fills the table."""

from . import attention, combine, conv, elementwise, linear, norm, pool, shape
from .table import REFITS, RULES, find_rule, refit, rule

__all__ = [
    "REFITS",
    "RULES",
    "attention",
    "combine",
    "conv",
    "elementwise",
    "find_rule",
    "linear",
    "norm",
    "pool",
    "refit",
    "rule",
    "shape",
]
