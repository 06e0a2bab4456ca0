"""What `planish inspect` shows: of a bundle what it says of itself, of a model its graph and what it costs."""

import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from .backends.bundle import MANIFEST, Bundle
from .backends.manifest import Manifest
from .report import COSTS, Report, layer_table
from .tables import byte_count, facts, name, number, spaced, table
from .terminal import View

BUNDLE_SUFFIX = ".planish"


def is_bundle(spec: str) -> bool:
    """Whether a path is a bundle, or was one before it was damaged."""
    path = Path(spec)
    if not path.is_file():
        return path.suffix == BUNDLE_SUFFIX
    if not zipfile.is_zipfile(path):
        return path.suffix == BUNDLE_SUFFIX
    try:
        with zipfile.ZipFile(path) as archive:
            return MANIFEST in archive.namelist()
    except Exception:  # on damaged bytes zipfile raises most of Python's exceptions
        return True


# ---------------------------------------------------------------- bundles


def bundle_view(path: str) -> View:
    """The manifest's facts, each layer with its kernel, tile and instruction, and the members with their sizes.

    Raises BundleError for a bundle that is truncated, edited or of another version.
    """
    bundle = Bundle.open(path)
    manifest, size = bundle.manifest, Path(path).stat().st_size
    document = {"kind": "bundle", "path": path, "bytes": size, "manifest": asdict(manifest)}
    shown = spaced(
        Text.assemble((Path(path).name, "bold"), f"  {byte_count(size)}, every hash is right"),
        _manifest_table(manifest),
        _layers(manifest),
        _members(manifest),
    )
    return View(document, shown)


def _manifest_table(manifest: Manifest) -> RenderableType:
    target, golden = manifest.target, manifest.golden
    made_with = (f"{package} {version}" for package, version in manifest.versions.items() if version)
    return facts(
        [
            ("target", f"{target['name']} ({target.get('cuda_arch') or target['cpu']}, {target['triple']})"),
            ("needs", ", ".join(manifest.features)),
            ("code", {"c": "C program, static runner inside", "tvm": "module for TVM's runtime"}[manifest.kind]),
            ("recipe", manifest.recipe or "no passes"),
            ("inputs", ", ".join(map(str, manifest.inputs))),
            ("outputs", ", ".join(map(str, manifest.outputs))),
            ("weights", byte_count(manifest.weight_bytes)),
            ("arena", byte_count(manifest.arena_bytes) if manifest.arena_bytes else ""),
            ("workspace", f"{byte_count(manifest.workspace_bytes)} a thread" if manifest.workspace_bytes else ""),
            ("self-test", f"within {golden.rtol:g} relative and {golden.atol:g} absolute of PyTorch"),
            ("int8 kernels", manifest.report.get("int8_kernels", "")),
            ("made with", ", ".join(made_with)),
            ("format", manifest.format),
        ]
    )


def _layers(manifest: Manifest) -> RenderableType | None:
    """The layers of the report, which knows instructions; the manifest's calls where there is none."""
    report = Report.from_dict(manifest.report)
    if report and report.layers:
        return layer_table(report.layers)
    rows = [(layer, kernel) for kernel, layer in manifest.calls]
    return table("", (name("layer"), name("kernel")), rows) if rows else None


def _members(manifest: Manifest) -> RenderableType:
    rows = [(key, f"{member.bytes:,}", member.sha256[:12]) for key, member in sorted(manifest.members.items())]
    return table("", (name("member"), number("bytes"), name("sha256")), rows)


# ---------------------------------------------------------------- models and graphs


def graph_view(spec: str, graph: Any, *, text: bool, by_node: bool) -> View:
    """Inputs, outputs and cost of a graph; on demand its text form and the cost of every node.

    Costs are for a batch of 1. The document holds everything, whatever is shown.
    """
    from .ir.cost import cost

    total = cost(graph)
    nodes = [asdict(entry) for entry in total.by_node.values()]
    document = {
        "kind": "graph",
        "path": spec,
        "inputs": [str(spec) for spec in graph.inputs],
        "outputs": [str(spec) for spec in graph.outputs],
        "properties": sorted(graph.properties),
        "cost": {key: getattr(total, key) for key in COSTS},
        "by_op": _by_op(nodes),
        "by_node": nodes,
        "text": graph.text(),
    }
    shown = spaced(
        Text(spec, style="bold"),
        facts([*((key, ", ".join(document[key])) for key in ("inputs", "outputs", "properties")), *_totals(document)]),
        _op_table(document["by_op"]),
        _node_table(nodes) if by_node else None,
        Text(document["text"], no_wrap=True, overflow="ignore") if text else None,
    )
    return View(document, shown)


def _by_op(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls, multiply-accumulates and bytes of weights per op, the dearest first."""
    rows: dict[str, dict[str, Any]] = {}
    for node in nodes:
        row = rows.setdefault(node["op"], {"op": node["op"], "calls": 0, "macs": 0, "weight_bytes": 0})
        row["calls"] += 1
        row["macs"] += node["macs"]
        row["weight_bytes"] += node["weight_bytes"]
    return sorted(rows.values(), key=lambda row: (-row["macs"], -row["weight_bytes"], row["op"]))


def _totals(document: dict[str, Any]) -> list[tuple[str, str]]:
    return [(label, f"{document['cost'][key]:,}") for key, label in COSTS.items()]


def _op_table(rows: list[dict[str, Any]]) -> RenderableType:
    cells = [(r["op"], r["calls"], f"{r['macs']:,}", f"{r['weight_bytes']:,}") for r in rows]
    return table("", (name("op"), number("calls"), number("MACs"), number("bytes of weights")), cells)


def _node_table(nodes: list[dict[str, Any]]) -> RenderableType:
    columns = (name("node"), name("op"), number("MACs"), number("bytes of weights"), number("bytes out"))
    cells = [(n["name"], n["op"], f"{n['macs']:,}", f"{n['weight_bytes']:,}", f"{n['output_bytes']:,}") for n in nodes]
    return table("", columns, cells)
