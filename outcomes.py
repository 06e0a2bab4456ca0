"""Outcomes on disk: what a pipeline made of a model, found again before the model is captured.

An entry lies beside the built code (`backends/cache.py`) and holds the thinned graph, the report, the golden pair, and
the key of the code. It is as much as a second compilation needs to give the same as the first, byte by byte.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
import torch
from torch import fx
from torch.utils import _pytree as pytree

from .backends.artifact import Artifact, Edges, Golden
from .backends.cache import Cache, Entry
from .ir import archive
from .ir.capture import Source
from .ir.errors import UsageError
from .ir.ops import is_random
from .ir.packed import pack, unpack
from .ir.shadow import is_known_op
from .ir.shapes import TensorSpec
from .outcome_key import order_digest, source_digest
from .passes.base import Context
from .passes.pipeline import Pipeline
from .report import PassReport, Report
from .thinned import Thinned

_GOLDEN = "golden.safetensors"


@dataclass(frozen=True)
class Kept:
    """What an entry holds. code: the key of the built code in the same cache."""

    thinned: Thinned
    report: Report
    code: str | None


class Outcomes:
    """The outcomes of one pipeline, target, batch, seed and data; of none where they follow from more than that."""

    def __init__(self, store: Cache | None, pipeline: Pipeline, context: Context, batch: int | None):
        self._store, self._batch = store, batch
        self._order = order_digest(pipeline, context, batch) if store is not None else None
        self._key: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether something can be found and kept."""
        return self._order is not None

    def find(self, model: Source, args: Any = None) -> Kept | None:
        """What was kept of a model; None where nothing was. `keep` keeps under the model that was last looked for, if
        it has a key: the witness of a module, the content of a graph or file."""
        if self._store is None or self._order is None or self._key is not None:
            return None
        source = source_digest(model, args, self._store)
        if source is None:
            return None
        self._key = hashlib.sha256(f"outcome {self._order} {source}".encode()).hexdigest()
        entry = self._store.get(self._key)
        return None if entry is None else _read(entry, self._batch)

    def keep(self, thinned: Thinned, report: Report, artifact: Artifact) -> None:
        """Keep an outcome, if it has a key, and a form without pickle."""
        if self._store is None or self._key is None or not all(map(_is_repeatable, thinned.graph.nodes)):
            return
        try:
            entry = _entry(thinned, report, artifact)
        except (UsageError, RuntimeError, ValueError, TypeError):  # safetensors and torch have words of their own
            return
        self._store.put(self._key, entry)


def _is_repeatable(node: fx.Node) -> bool:
    return is_known_op(node.target) and not is_random(node)


def _entry(thinned: Thinned, report: Report, artifact: Artifact) -> Entry:
    packed, members = pack(thinned.graph)
    facts = {
        "packed": packed,
        "inputs": [_encoded(spec) for spec in thinned.edges.inputs],
        "outputs": [_encoded(spec) for spec in thinned.edges.outputs],
        "out_spec": archive.encode_nesting(thinned.out_spec),
        "report": archive.encode(asdict(report.untimed())),
        "code": artifact.key,
    }
    can_be_saved = not artifact.eager
    return Entry(facts, {**members, **({_GOLDEN: _golden_bytes(thinned.golden())} if can_be_saved else {})})


def _read(entry: Entry, batch: int | None) -> Kept:
    facts, members = entry.facts, entry.members
    edges = Edges(*(tuple(map(_decoded, facts[side])) for side in ("inputs", "outputs")))
    out_spec = pytree.tree_structure(archive.decode(facts["out_spec"], {}))
    golden = _golden(members[_GOLDEN]) if _GOLDEN in members else None
    thinned = Thinned(lambda: unpack(facts["packed"], members), batch, edges, out_spec, golden)
    values = archive.decode(facts["report"], {})
    report = Report(**{**values, "passes": tuple(PassReport(**row) for row in values["passes"])})
    return Kept(thinned, report, facts["code"])


def _encoded(spec: TensorSpec) -> Any:
    return archive.encode((spec.name, spec.dtype, spec.shape, spec.scale, spec.zero_point))


def _decoded(spec: Any) -> TensorSpec:
    return TensorSpec(*archive.decode(spec, {}))


def _golden_bytes(golden: Golden) -> bytes:
    named = {f"{side}{i}": t for side, group in zip("io", golden, strict=True) for i, t in enumerate(group)}
    # A model may give one tensor twice, or a view of its input, which safetensors does not write.
    return safetensors.torch.save(
        {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in named.items()}
    )


def _golden(content: bytes) -> Golden:
    found = safetensors.torch.load(content)
    sides: tuple[Sequence[torch.Tensor], ...] = tuple(
        [found[f"{side}{i}"] for i in range(sum(name[0] == side for name in found))] for side in "io"
    )
    return sides[0], sides[1]
