"""A model as a C program: header, driver with a static memory plan, weights and one object file."""

from .program import CProgram, KernelCall, emit, link_library, link_runner

__all__ = ["CProgram", "KernelCall", "emit", "link_library", "link_runner"]
