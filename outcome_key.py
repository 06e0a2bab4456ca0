"""The key of an outcome: a digest of all that decides what a pipeline makes of a model, found without capturing it."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from .backends.cache import Cache, Entry
from .backends.cache_key import sources_digest, versions
from .backends.linker import linkers_of
from .ir.capture import Source
from .ir.errors import UsageError
from .ir.graph import Graph, named_tensors
from .ir.packed import parts
from .ir.shadow import Types, content_digest, is_known_op
from .ir.witness import outline, witness
from .passes.base import Context, Pass
from .passes.pipeline import Pipeline

# What a pass may need that is a function of the caller's, or a clock.
_FUNCTIONS = frozenset({"evaluate", "latency"})
_PLAIN = (bool, int, float, str, type(None))


def order_digest(pipeline: Pipeline, context: Context, batch: int | None) -> str | None:
    """A digest of all but the model: the recipe and its options, target, seed, data, batch, versions, threads.

    None where the outcome follows from more than that: a function of the caller's, rewrites that are counted, passes
    of other packages or that are not repeatable, data that is not at hand as tensors.
    Raises BuildError for a board for which nothing links on this machine.
    """
    if context.fuel.left is not None or context.evaluate is not None or not all(map(_is_repeatable, pipeline)):
        return None
    if context.loss is not torch.nn.functional.cross_entropy or context.original is not None:
        return None
    digest = hashlib.sha256()
    try:
        _add_data(digest, context.data)
    except TypeError:
        return None
    facts = {
        "recipe": str(pipeline),
        "target": asdict(context.target),
        "seed": context.seed,
        "batch": batch,
        "linkers": linkers_of(context.target.triple) if context.target.code == "c" else [],
        "threads": torch.get_num_threads(),  # which order floats are summed in
        "processor": torch.backends.cpu.get_cpu_capability(),
        "versions": {**versions(), "package": _package_digest()},
    }
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()


def source_digest(model: Source, args: Any, store: Cache) -> str | None:
    """A digest of a model with its weights; None for one that must be captured first.

    store   where what is known of the types of a model's calls is kept
    """
    if isinstance(model, torch.nn.Module):
        return None if args is None else _module_digest(model, args, store)
    if isinstance(model, Graph):
        return _graph_digest(model)
    if isinstance(model, (str, os.PathLike)):
        return _file_digest(Path(model))
    return None


def _module_digest(model: torch.nn.Module, args: Any, store: Cache) -> str | None:
    if any(map(is_lazy, model.parameters())):  # its shape comes with its first call
        return None
    args = (args,) if isinstance(args, torch.Tensor) else tuple(args)
    place = hashlib.sha256(f"types of calls {outline(model, args)}".encode()).hexdigest()
    found = store.get(place)
    types = Types(found.facts if found else None)
    seen = witness(model, args, types)
    if types.found_new:
        store.put(place, Entry(types.known, {}))
    if seen is None:
        return None
    contents = {id(tensor): content_digest(tensor) for tensor in named_tensors(model).values()}
    return hashlib.sha256(" ".join((seen, *contents.values())).encode()).hexdigest()


def _graph_digest(graph: Graph) -> str | None:
    if not all(is_known_op(node.target) for node in graph.nodes):
        return None
    try:
        facts, tensors = parts(graph)
        facts["contents"] = {name: (str(t.dtype), list(t.shape), content_digest(t)) for name, t in tensors.items()}
    except (UsageError, RuntimeError, TypeError):  # torch's own words for weights that are no bytes of the CPU
        return None
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _file_digest(path: Path) -> str | None:
    """Of a file that holds all of a model, as an ONNX file may not."""
    if path.suffix == ".onnx" or not path.is_file():
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_repeatable(entry: Pass) -> bool:
    is_ours = type(entry).__module__.startswith(f"{__package__}.") and bool(entry.name)
    return is_ours and entry.is_repeatable() and not entry.needed() & _FUNCTIONS


def _add_data(digest: Any, value: Any) -> None:
    """Raises TypeError for what can be read only by running somebody's code: a loader, a generator."""
    if isinstance(value, _PLAIN):
        digest.update(f"{value!r} ".encode())
    elif type(value) is torch.Tensor and value.device.type == "cpu" and value.layout == torch.strided:
        digest.update(f"{value.dtype} {list(value.shape)} {value.stride()} {content_digest(value)} ".encode())
    elif type(value) in (tuple, list, dict):
        items: Iterable[Any] = value.items() if isinstance(value, dict) else value
        digest.update(f"{type(value).__name__} {len(value)} ".encode())
        for item in items:
            _add_data(digest, item)
    else:
        raise TypeError(f"a {type(value).__name__} is no plain data")


@cache
def _package_digest() -> str:
    return sources_digest("", "ir", "passes", "backends")
