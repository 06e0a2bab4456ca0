"""A graph as bytes and back, whole: with the weights that no node reads, their order, their strides and their kinds.

A saved graph (`archive.py`) is what a model computes; this is the object that a program holds, as a copy would be.
"""

from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch

from . import archive, shapes
from .archive import WEIGHTS_MEMBER
from .errors import UsageError
from .graph import Graph, named_tensors, transient_buffers


def pack(graph: Graph) -> tuple[dict[str, Any], dict[str, bytes]]:
    """(JSON-able facts, members by name). The same graph gives the same bytes. Raises UsageError as `parts` does."""
    facts, tensors = parts(graph)
    return facts, {WEIGHTS_MEMBER: safetensors.torch.save(tensors)}


def parts(graph: Graph) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """All of a graph: JSON-able facts, and its tensors, tied ones once.

    Raises UsageError for a graph that has no form without pickle: calls without a schema, regions of control flow,
    weights that are no plain tensors, extents that stand for something else than the batch.
    """
    document, read = archive.contents(graph)
    document["call"] = archive.encode_call_form(graph.module.graph)
    _check_extents(graph)
    every = named_tensors(graph.module)
    owners = {name[:end] for name in every for end, letter in enumerate(name) if letter == "."}
    for name, tensor in every.items():
        if name not in read and name not in document["ties"]:
            document["ties"] |= {n: name for n, t in every.items() if t is tensor and n != name}
            read[name] = tensor
            if isinstance(tensor, torch.nn.Parameter):
                document["parameters"][name] = tensor.requires_grad
    facts = {
        "document": document,
        "order": list(every),
        "modules": [name for name, _ in graph.module.named_modules() if name in owners],
        "transient": sorted(transient_buffers(graph.module)),
        "strides": {name: list(t.stride()) for name, t in read.items() if not t.is_contiguous()},
    }
    return facts, {name: _plain(name, tensor) for name, tensor in read.items()}


def unpack(facts: dict[str, Any], members: Mapping[str, bytes]) -> Graph:
    """The graph that `pack` was given: the same text, weights, names, kinds and order, on tensors of its own."""
    document = facts["document"]
    found = safetensors.torch.load(members[WEIGHTS_MEMBER])
    for name, strides in facts["strides"].items():
        found[name] = torch.empty_strided(found[name].shape, strides, dtype=found[name].dtype).copy_(found[name])
    tensors = {name: found[document["ties"].get(name, name)] for name in facts["order"]}
    graph = archive.build(document, tensors, frozenset(facts["transient"]))
    _arrange(graph.module, [*facts["modules"], *facts["order"]])
    return graph


def _arrange(module: torch.nn.Module, order: list[str]) -> None:
    """Put modules and tensors into this order, in which an optimizer counts parameters."""
    ranks = {name: rank for rank, name in enumerate(order)}
    for path, inner in module.named_modules():
        tables: tuple[Any, ...] = (inner._parameters, inner._buffers, inner._modules)
        for table in tables:
            entries = sorted(table.items(), key=lambda entry: ranks[f"{path}.{entry[0]}" if path else entry[0]])
            table.clear()
            table.update(entries)


def _plain(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer) or tensor.layout != torch.strided:
        raise UsageError("pack", f"weight '{name}' is a {type(tensor).__name__}", "only plain tensors are kept")
    return tensor.detach().contiguous()


def _check_extents(graph: Graph) -> None:
    """A symbol that counts at its example value (a part's height) would come back as a batch."""
    for node in shapes.input_nodes(graph.module.graph):
        for extent in node.meta["val"].shape:
            if isinstance(extent, torch.SymInt) and shapes.concrete(extent, 3) != 3:
                raise UsageError("pack", f"input '{node.name}' has the extent {extent}", "only batches are kept")
