"""From a graph of dynamo's and its first arguments to a program, or to a record of why it stays in PyTorch."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from torch import fx
from torch.utils import _pytree as pytree

from ...ir.capture import export, from_exported_program
from ...ir.errors import BuildError, CaptureError, UsageError, first_line
from ...ir.graph import Graph
from ...ir.ops import arguments, describe, has_schema, is_random
from ...ir.shapes import TensorSpec
from ...passes.base import Context
from ...passes.pipeline import Pipeline
from ..artifact import tolerance
from ..cache import Cache
from ..hybrid import HybridArtifact, build_hybrid, count_calls, plan_regions
from ..partition import base_of_view, output_nodes
from .coverage import coverage_table
from .graph import Frozen, Slots, name_source, returns_tensors
from .program import Program
from .records import Compilation, record

# Integer outputs that hang on comparing floats (an argmax) may differ where two values are nearly equal.
EQUAL_INTEGERS = 0.99


class Builder:
    """Builds programs from one graph."""

    def __init__(self, module: fx.GraphModule, slots: Slots, pipeline: Pipeline, context: Context,
                 cache: Cache | None = None, *, dry_run: bool):  # fmt: skip
        self._module, self._slots = module, slots
        self._pipeline, self._context, self._cache, self._dry_run = pipeline, context, cache, dry_run

    def build(self, args: Sequence[Any], *, dynamic: bool) -> Program:
        """A program for these arguments; one without code, and a report that says why, where that fails.

        dynamic  try code for any batch before code for these shapes

        Raises UsageError for data or a recipe that do not fit the model.
        """
        slots = self._slots
        weights, inputs = ([args[i] for i in which] for which in (slots.weights, slots.tensors))
        made, why = None, ""
        with torch.inference_mode(False), torch.no_grad():
            for any_batch in (True, False) if dynamic else (False,):
                try:
                    made = self._attempt(args, weights, inputs, any_batch)
                except UsageError:
                    raise
                except Exception as error:
                    why = first_line(error)
                if made is not None and (self._dry_run or made.artifact is not None):
                    break
        if made is None:
            self.stays(why)
        else:
            record(made)
        code = made.artifact if made is not None else None
        specs = made.outcome.graph.inputs if made is not None and made.outcome and code else _specs(inputs)
        return Program(weights, slots.number_values(args), specs, code)

    def stays(self, why: str) -> None:
        """Report that the whole graph runs in PyTorch."""
        calls = [node for node in self._module.graph.nodes if node.op in ("call_function", "call_method")]
        record(Compilation(self._context.target.name, str(self._pipeline), eager=count_calls(calls), reasons=(why,)))

    def _attempt(self, args: Sequence[Any], weights: list[torch.Tensor], inputs: list[torch.Tensor],
                 any_batch: bool) -> Compilation:  # fmt: skip
        target, recipe, started = self._context.target, str(self._pipeline), time.perf_counter()
        _check_tensors(weights, inputs)
        if not returns_tensors(self._module):
            raise BuildError("torch.compile", "the graph returns something that is no tensor")
        examples = [tensor.detach().clone() for tensor in inputs]
        captured = _capture(Frozen(self._module, self._slots, args), examples, any_batch)
        outcome = self._pipeline.run(captured, self._context)
        if self._dry_run:
            plan = plan_regions(outcome.graph, target, like_pytorch=True)
            Console().print(coverage_table(plan, outcome.graph))
            return Compilation(target.name, recipe, outcome, None, plan.eager, plan.reasons)
        artifact = build_hybrid(outcome.graph, target, recipe, self._cache, like_pytorch=True)
        _check_agreement(outcome.graph, artifact, examples)
        seconds = {"compile": time.perf_counter() - started}
        code = artifact if artifact.facts["regions"] else None
        return Compilation(target.name, recipe, outcome, code, artifact.eager, artifact.reasons, seconds)


def _capture(module: Frozen, examples: list[torch.Tensor], any_batch: bool) -> Graph:
    """The graph in our form. Raises BuildError where that is not possible, or eval form would be another model."""
    try:
        program = export(module, (tuple(examples),), dynamic_batch=any_batch)
    except CaptureError as error:
        raise BuildError("torch.compile", str(error).rstrip(".")) from error
    for node in program.graph.nodes:
        name_source(node)
        if has_schema(node) and _trains(node):
            raise BuildError(describe(node), "it runs in training mode", "call model.eval() first")
    captured = from_exported_program(program)
    for leaf in output_nodes(captured):
        if base_of_view(leaf).op == "get_attr":
            what = f"an output shares memory with the weight '{base_of_view(leaf).target}'"
            raise BuildError("torch.compile", what, "return a clone of it")
    return captured


def _trains(node: fx.Node) -> bool:
    call = arguments(node)
    is_training = getattr(call, "training", False) is True or getattr(call, "train", False) is True
    return is_training and getattr(call, "dropout", 1) != 0  # recurrent layers without dropout do not care


def _check_tensors(weights: list[torch.Tensor], inputs: list[torch.Tensor]) -> None:
    for tensor in (*weights, *inputs):
        if tensor.device.type != "cpu":
            raise BuildError("torch.compile", f"a tensor is on '{tensor.device}'", "expected the CPU")
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
            raise BuildError("torch.compile", f"a tensor is a {type(tensor).__name__}", "expected a plain tensor")
        if tensor.layout != torch.strided:
            raise BuildError("torch.compile", f"a tensor has the layout {tensor.layout}", "expected torch.strided")
    if any(tensor.is_inference() for tensor in weights):
        what = "the weights were made under torch.inference_mode(), where changes of them cannot be seen"
        raise BuildError("torch.compile", what, "make the model outside of it")


def _check_agreement(graph: Graph, artifact: HybridArtifact, examples: list[torch.Tensor]) -> None:
    """Run the code and PyTorch on the first inputs. Raises BuildError where they differ: TVM got an op wrong."""
    if not artifact.facts["regions"] or any(is_random(node) for node in graph.nodes):
        return
    expected = pytree.tree_leaves(graph.copy().eval().module(tuple(t.clone() for t in examples)))
    is_fake_quantized = {"fake_quantized": any("fake_quant" in str(node.target) for node in graph.nodes)}
    for number, (actual, wanted) in enumerate(zip(artifact.run(examples), expected, strict=True)):
        if not _agrees(actual, wanted, **tolerance(is_fake_quantized, [wanted])):
            what = f"output {number} of the compiled code differs from PyTorch's"
            raise BuildError("torch.compile", what, "please report the model; it runs in PyTorch")


def _agrees(actual: torch.Tensor, wanted: torch.Tensor, rtol: float, atol: float) -> bool:
    if actual.shape != wanted.shape or actual.dtype != wanted.dtype:
        return False
    if wanted.numel() == 0:
        return True
    if not wanted.dtype.is_floating_point:
        return float((actual == wanted).double().mean()) >= EQUAL_INTEGERS
    # Sums of large terms leave small results: the scale of an output is its largest value.
    finite = wanted[torch.isfinite(wanted)]
    scale = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
    return torch.allclose(actual, wanted, rtol=rtol, atol=atol * scale, equal_nan=True)


def _specs(inputs: list[torch.Tensor]) -> list[TensorSpec]:
    return [TensorSpec(f"input {i}", t.dtype, tuple(t.shape)) for i, t in enumerate(inputs)]
