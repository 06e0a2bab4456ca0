"""One file per op family; importing this package fills the table."""

from . import attention, combine, conv, elementwise, linear, lookup, norm, pool, recurrent, shape, shuffle
from .table import REFITS, RULES, find_refit, find_rule, refit, rule

__all__ = [
    "REFITS",
    "RULES",
    "attention",
    "combine",
    "conv",
    "elementwise",
    "find_refit",
    "find_rule",
    "linear",
    "lookup",
    "norm",
    "pool",
    "recurrent",
    "refit",
    "rule",
    "shape",
    "shuffle",
]
