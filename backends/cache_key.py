"""The key of built code: a digest of all that decides its bytes."""

import hashlib
import json
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..ir.archive import contents
from ..ir.errors import UsageError
from ..ir.graph import Graph
from .bundle import made_with
from .cache import Cache, Entry
from .target import Target

# Folders of the package whose code decides what a graph becomes.
_SOURCES = ("ir", "backends")
_KINDS = {".py", ".toml", ".c", ".h"}


class Place:
    """Where the code of one graph is kept; nowhere where there is no cache, or the graph has no key."""

    def __init__(self, cache: Cache | None, key: str | None):
        self._cache, self._key = (cache, key) if cache is not None and key is not None else (None, "")

    @staticmethod
    def of(cache: Cache | None, graph: Graph, target: Target, **options: Any) -> "Place":
        """options: what decides the code beside graph and target, JSON-able."""
        return Place(cache, content_key(graph, target, **options) if cache is not None else None)

    def get(self) -> Entry | None:
        return self._cache.get(self._key) if self._cache is not None else None

    def put(self, entry: Entry) -> None:
        if self._cache is not None:
            self._cache.put(self._key, entry)

    def drop(self) -> None:
        """Remove what `get` gave, because it could not be used."""
        if self._cache is not None:
            self._cache.drop(self._key)

    @property
    def is_open(self) -> bool:
        """Whether something can be kept."""
        return self._cache is not None

    @property
    def key(self) -> str | None:
        """Of the entry; None where nothing is kept."""
        return self._key or None


def content_key(graph: Graph, target: Target, **options: Any) -> str | None:
    """sha256 over the graph's ops and weights, the target's row, `options` and the versions of all that builds.

    Source lines do not count. None for a graph that has no form on disk: it calls ops without a schema.
    """
    try:
        document, weights = contents(graph)
        digest = hashlib.sha256()
        for name in sorted(weights):
            digest.update(_raw(weights[name]))
    except (UsageError, RuntimeError):  # torch's own word for weights that are no plain bytes
        return None
    document["nodes"] = [{k: v for k, v in node.items() if k != "source"} for node in document["nodes"]]
    facts = {
        "graph": document,
        "edges": [repr(spec) for spec in (*graph.inputs, *graph.outputs)],
        "weights": {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in weights.items()},
        "target": asdict(target),
        "options": options,
        "versions": versions(),
    }
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()


@cache
def versions() -> dict[str, str]:
    """Of the packages that build, and of our own code by its content: a checkout keeps its number while it changes."""
    return {**made_with(), "tvm-ffi": metadata.version("apache-tvm-ffi"), "sources": sources_digest(*_SOURCES)}


def sources_digest(*folders: str) -> str:
    """sha256 over our own code in these folders of the package; "" is the package's root without its folders."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for folder in folders:
        found = (root / folder).rglob("*") if folder else root.glob("*")
        for path in sorted(p for p in found if p.suffix in _KINDS):
            digest.update(f"{path.relative_to(root)}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _raw(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
