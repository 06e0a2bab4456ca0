"""Calls of a graph as Relax: which of them become one kernel, and what is emitted for each. relax.py drives it."""
